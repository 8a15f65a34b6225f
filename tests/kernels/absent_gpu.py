"""A GPU that is not there: operations run as on one, on tensors without contents; what they launch is noted, and can be
compiled."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped, import-not-found, unused-ignore]
from triton.runtime import driver  # type: ignore[import-untyped, import-not-found, unused-ignore]

import kernels.delta_rule.triton
import kernels.linear_attention.triton  # noqa: F401 (their operators have to be there)
from kernels import configurations
from kernels.delta_rule import operation as delta_operation
from kernels.linear_cross_entropy import triton as head
from tests.kernels.bench_case import Case, Draw, results

Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]  # kernel, arguments, and those by keyword


class Pointer:
    """What Triton asks of a tensor: its type, and where it begins, from an address that is a multiple of 16."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self._offset = tensor.storage_offset() * tensor.itemsize

    def data_ptr(self) -> int:
        return self._offset


@contextmanager
def absent_gpu(capability: int) -> Iterator[list[Launch]]:
    """Tensors on the device "meta" are on a GPU of this compute capability (90 for Hopper), which uses kernels too that
    have not run on one yet. Gives the list of launches."""
    noted: list[Launch] = []

    def note(kernel: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        assert all(0 < size < most for size, most in zip(grid, (2**31, 2**16, 2**16), strict=False)), grid
        noted.append((kernel, tuple(Pointer(x) if isinstance(x, Tensor) else x for x in arguments), options))

    with ExitStack() as stack:
        for place, name, value in (
            (triton.JITFunction, "run", note),
            (configurations, "device_class", lambda device: f"sm_{capability}"),
            (delta_operation, "_shared_bytes", lambda device: 2**18),
            (head, "_accumulate", lambda total, a, b: None),  # by cuBLAS; torch 2.11 does not know it without contents
            (torch.cuda, "device", nullcontext),
            (torch.cuda, "device_of", nullcontext),
        ):
            stack.enter_context(patch.object(place, name, value))
        stack.enter_context(patch.object(Tensor, "is_cuda", property(lambda tensor: tensor.is_meta), create=True))
        # Without contents an operator gives what its stand-in gives: here that is the operator itself.
        for name, operator in OPDEFS.items():
            if name.startswith(("kernels::", "asiarch_kernels::")):
                stack.enter_context(patch.object(operator, "_abstract_fn", operator._init_fn))
        yield noted


def launches(case: Case, capability: int = 90, dtype: torch.dtype = torch.bfloat16) -> list[Launch]:
    """Of a forward and backward pass at full size, none of which happens; `dtype` in place of bfloat16."""

    def lowered(x: Tensor) -> Tensor:
        return x.to(dtype) if x.dtype == torch.bfloat16 else x

    made = case.operands(Draw("meta", None), case.batch)
    operands = tuple(lowered(x.detach()).requires_grad_(x.requires_grad) for x in made)
    with absent_gpu(capability) as noted:
        results(case.ours, operands)
    return noted


def compiled(wanted: Iterable[Launch], capability: int) -> list[Any]:
    """What Triton would launch there, or the exception that it raises, of each; compiled side by side, and left in
    Triton's cache."""

    def one(launch: Launch) -> Any:
        kernel, arguments, options = launch
        try:
            return kernel.run(*arguments, grid=(1,), warmup=True, **options)
        except Exception as failure:
            return failure

    wanted = list(wanted)
    with absent_driver(capability), ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(one, wanted))
        # What failed beside others, once more alone: Triton does not promise to compile in threads.
        alone = zip(wanted, found, strict=True)
        return [one(launch) if isinstance(built, Exception) else built for launch, built in alone]


def key_of(launch: Launch) -> tuple[Any, ...]:
    """Equal for launches of what is compiled alike."""
    kernel, arguments, options = launch
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    variable = {parameter.name for parameter in kernel.params if not parameter.is_constexpr}

    def said(name: str, value: Any) -> str:
        if isinstance(value, Pointer):
            return f"{value.dtype} {value.data_ptr() % 16}"
        if name in variable and type(value) in (int, float):
            return "1" if value == 1 else f"{type(value).__name__} {value % 16 == 0}"
        return repr(value)

    return kernel.fn.__module__, kernel.__name__, *(f"{name}={said(name, given[name])}" for name in sorted(given))


@contextmanager
def absent_driver(capability: int) -> Iterator[None]:
    """Triton compiles for such a GPU."""
    active = driver.__class__()
    active.set_active(_Driver(capability))
    with patch.object(triton.runtime.jit, "driver", active), patch.object(triton.runtime.autotuner, "driver", active):
        yield


class _Driver:
    """What compiling asks of a device."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> str:
        return f"sm_{self.capability}"  # which Triton's caches have kernels by

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)
