"""The long convolution at its longest; what it shares with every operation is in the other files."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.long_convolution import long_convolution
from tests.kernels.cases import error
from tests.kernels.conftest import TOLERANCES

LENGTH = 32_768


class Observed(TorchDispatchMode):
    """What Fourier transforms are given, and how many bytes of results live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.transformed: set[torch.dtype] = set()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "fft" in str(func):
            self.transformed.add(args[0].dtype)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._seen:
            return
        self._seen.add(id(storage))
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, id(storage), storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_longest(dtype: torch.dtype, device: str) -> None:
    """Against one transform over everything in float64."""
    generator = torch.Generator().manual_seed(0)
    x, taps, dy = (torch.randn(*s, generator=generator) for s in ((1, LENGTH, 2), (2, LENGTH), (1, LENGTH, 2)))
    x, taps, dy = (t.to(device, dtype) for t in (x, taps / LENGTH**0.5, dy))
    ours = [t.detach().requires_grad_() for t in (x, taps)]
    exact = [t.detach().double().requires_grad_() for t in (x, taps)]
    with torch.autocast(device, dtype=torch.bfloat16):
        y = long_convolution(*ours)
    transformed = [torch.fft.rfft(t, n=2 * LENGTH) for t in (exact[0].mT, exact[1])]
    wanted = torch.fft.irfft(transformed[0] * transformed[1], n=2 * LENGTH)[..., :LENGTH].mT
    assert y.dtype == dtype
    assert error(y, wanted) < TOLERANCES[dtype]
    pairs = zip(torch.autograd.grad(y, ours, dy), torch.autograd.grad(wanted, exact, dy.double()), strict=True)
    for found, right in pairs:
        assert found.dtype == dtype
        assert error(found, right) < TOLERANCES[dtype]


def test_transforms_are_in_float32_and_memory_is_a_few_times_the_operands() -> None:
    """On the meta device, where nothing is computed: cuFFT has no bfloat16."""
    x = torch.zeros(1, LENGTH, 1024, dtype=torch.bfloat16, device="meta", requires_grad=True)
    taps = torch.zeros(1024, LENGTH, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with Observed() as observed:
        torch.autograd.grad(long_convolution(x, taps).sum(), (x, taps))
    assert observed.transformed == {torch.float32, torch.complex64}
    assert observed.peak < 14 * 4 * x.numel()
