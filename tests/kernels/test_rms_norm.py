"""rms_norm and gated_rms_norm against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.rms_norm import gated_rms_norm, plain, reference, rms_norm
from tests.kernels.cases import error
from tests.kernels.conftest import TOLERANCES
from tests.kernels.interpreter import run_interpreted

VARIANTS = [(False, False, "silu"), (False, True, "silu"), (True, True, "silu"), (True, False, "sigmoid")]


def compare(
    shape: tuple[int, ...], gated: bool, weighted: bool, activation: Any, dtype: torch.dtype, device: str
) -> None:
    """Results and gradients, against float64."""
    generator = torch.Generator(device).manual_seed(shape[-1])
    operands = [torch.randn(*shape, generator=generator, device=device).to(dtype) for _ in range(1 + gated)]
    if weighted:
        weight = torch.randn(shape[-1], generator=generator, device=device)
        operands.append(weight.double() if dtype == torch.float64 else weight)
    ours = [x.clone().requires_grad_() for x in operands]
    exact = [x.double().requires_grad_() for x in operands]
    if gated:
        y = gated_rms_norm(*ours, activation=activation)
        wanted = reference.gated_rms_norm(*exact, activation=activation)
    else:
        y, wanted = rms_norm(*ours), reference.rms_norm(*exact)
    assert y.dtype == dtype
    assert y.shape == shape
    upstream = torch.randn(shape, generator=generator, device=device).to(dtype)
    found = (y, *torch.autograd.grad(y, ours, upstream))
    expected = (wanted, *torch.autograd.grad(wanted, exact, upstream.double()))
    for a, b in zip(found, expected, strict=True):
        assert error(a, b) < TOLERANCES.get(dtype, 1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("gated", "weighted", "activation"), VARIANTS)
def test_results_and_gradients(gated: bool, weighted: bool, activation: str, dtype: torch.dtype) -> None:
    for shape in ((2, 3, 17), (5, 64), (1, 3)):
        compare(shape, gated, weighted, activation, dtype, "cpu")


def test_eps() -> None:
    x = torch.full((1, 4), 1e-4, dtype=torch.float64)
    for eps in (1e-8, 1e-2):
        assert error(rms_norm(x, eps=eps), reference.rms_norm(x, eps=eps)) < 1e-10
        assert error(gated_rms_norm(x, x, eps=eps), reference.gated_rms_norm(x, x, eps=eps)) < 1e-10


def test_arguments_that_do_not_fit() -> None:
    x = torch.randn(2, 8)
    with pytest.raises(ValueError, match="dim is 7, expected 8"):
        rms_norm(x, torch.ones(7))
    with pytest.raises(ValueError, match=r"gate has shape \[2, 7\], expected \[2, 8\]"):
        gated_rms_norm(x, x[:, :7])
    with pytest.raises(ValueError, match="activation is 'relu'"):
        gated_rms_norm(x, x, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a floating point tensor"):
        rms_norm(x.long())


def test_gpu_form_in_the_interpreter() -> None:
    run_interpreted("interpreted_rms_norm.py")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("gated", "weighted", "activation"), VARIANTS)
def test_on_a_gpu(gated: bool, weighted: bool, activation: str, dtype: torch.dtype) -> None:
    for shape in ((2, 300, 16), (5000, 64), (3, 100), (3000, 200), (700, 1024), (2, 4096), (2, 8192), (2, 8200)):
        compare(shape, gated, weighted, activation, dtype, "cuda")


@pytest.mark.gpu
def test_the_same_result_every_time() -> None:
    x, gate, w = (
        torch.randn(*shape, device="cuda", requires_grad=True) for shape in ((5000, 256), (5000, 256), (256,))
    )
    runs = [torch.autograd.grad(gated_rms_norm(x, gate, w).square().sum(), (x, gate, w)) for _ in range(5)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
    y = gated_rms_norm(x, gate, w)
    assert error(y, plain.normed(x, w, gate, 1e-6, True)) < 1e-5
