"""swiglu against its definition."""

from __future__ import annotations

import pytest
import torch

from kernels.swiglu import reference, swiglu
from tests.kernels.cases import error
from tests.kernels.conftest import TOLERANCES
from tests.kernels.interpreter import run_interpreted


def compare(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator(device).manual_seed(shape[-1])
    x = (4 * torch.randn(*shape, generator=generator, device=device)).to(dtype)
    upstream = torch.randn(*shape[:-1], shape[-1] // 2, generator=generator, device=device).to(dtype)
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, wanted = swiglu(ours), reference.swiglu(exact)
    assert y.dtype == dtype
    assert y.shape == wanted.shape
    found, expected = torch.autograd.grad(y, ours, upstream), torch.autograd.grad(wanted, exact, upstream.double())
    for a, b in zip((y, *found), (wanted, *expected), strict=True):
        assert error(a, b) < TOLERANCES.get(dtype, 1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_result_and_gradient(dtype: torch.dtype) -> None:
    for shape in ((2, 3, 34), (5, 64), (2,)):
        compare(shape, dtype, "cpu")


def test_large_gates_stay_finite() -> None:
    x = torch.tensor([[-1e4, 1e4, 2.0, 3.0]], requires_grad=True)
    y = swiglu(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="even last axis"):
        swiglu(torch.randn(2, 3))
    with pytest.raises(TypeError, match="floating point"):
        swiglu(torch.ones(2, 4, dtype=torch.int64))


def test_the_gpu_form_in_the_interpreter() -> None:
    run_interpreted("interpreted_swiglu.py")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    for shape in ((1, 2), (3, 1000, 34), (4096, 2 * 680), (2048, 2 * 2728)):
        compare(shape, dtype, "cuda")
    compiled = torch.compile(swiglu, fullgraph=True)
    x = torch.randn(64, 128, device="cuda", dtype=dtype)
    assert torch.equal(compiled(x), swiglu(x))
