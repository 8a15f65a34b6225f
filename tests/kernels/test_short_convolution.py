"""The GPU form of the short convolution; what it shares with every operation is in the other files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.short_convolution import chunked, operation, short_convolution
from tests.kernels.cases import error
from tests.kernels.conftest import TOLERANCES
from tests.kernels.interpreter import run_interpreted
from tests.kernels.offline import compile_for_hopper


def test_gpu_form_in_the_interpreter() -> None:
    run_interpreted("interpreted_short_convolution.py")


def test_wide_gpu_form_compiles(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from kernels.short_convolution import wide_kernels

    types = {"x_ptr": "*bf16", "w_ptr": "*fp32", "b_ptr": "*bf16", "dy_ptr": "*bf16", "y_ptr": "*fp32"}
    constants = {"GROUPS": 4, "TOKENS": 64, "BD": 64}
    flags = {"MISSING": 3, "BIAS": True, "SILU": True, "SLOPE": True, "REVERSE": True}  # all branches at once
    compile_for_hopper(wide_kernels.filter_kernel, types, constants | flags, tmp_path)
    types = {"x_ptr": "*bf16", "dz_ptr": "*fp32", "partial_ptr": "*fp32"}
    compile_for_hopper(wide_kernels.taps_kernel, types, constants, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [1, 4, 8, 9, 30, 64, 65])
@pytest.mark.parametrize("length", [1, 65, 1000])
def test_on_a_gpu(length: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the plain form in float64, which the other files compare with the reference; never much worse than it is
    in the same precision."""
    monkeypatch.setattr(operation, "WIDE_VERIFIED_ON_GPU", True)
    for dim, bias, activation in ((256, None, "silu"), (100, torch.randn(100, device="cuda"), None)):
        x = torch.randn(2, length, 3 * dim, device="cuda", dtype=dtype)[:, :, dim : 2 * dim]
        weight = torch.randn(dim, width, device="cuda")
        operands = [x, weight] if bias is None else [x, weight, bias]
        ours, plain = ([t.detach().clone().requires_grad_() for t in operands] for _ in range(2))
        exact = [t.detach().double().requires_grad_() for t in operands]
        y, z = short_convolution(*ours, activation=activation), chunked.short_convolution(*plain, activation=activation)
        wanted = chunked.short_convolution(*exact, activation=activation)
        dy = torch.randn_like(y)
        pairs = [(y, z, wanted)]
        pairs += zip(
            torch.autograd.grad(y, ours, dy), torch.autograd.grad(z, plain, dy),
            torch.autograd.grad(wanted, exact, dy.double()), strict=True,
        )  # fmt: skip
        for found, other, expected in pairs:
            assert error(found, expected) < min(TOLERANCES.get(dtype, 1e-2), 1.2 * error(other, expected) + 1e-6)
        assert torch.equal(short_convolution(*ours, activation=activation), y)


@pytest.mark.gpu
def test_in_a_compiled_graph() -> None:
    x, weight = (torch.randn(*shape, device="cuda", requires_grad=True) for shape in ((2, 100, 64), (64, 4)))
    compiled = torch.compile(lambda x, w: short_convolution(x * 2, w) + 1, fullgraph=True)
    found = torch.autograd.grad(compiled(x, weight).square().sum(), (x, weight))
    wanted = torch.autograd.grad((short_convolution(x * 2, weight) + 1).square().sum(), (x, weight))
    assert all(error(a, b) < 1e-6 for a, b in zip(found, wanted, strict=True))
