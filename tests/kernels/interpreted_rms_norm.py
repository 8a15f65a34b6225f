"""The GPU form of the norms in Triton's interpreter; run by test_rms_norm.py in its own process."""

from __future__ import annotations

import pytest
import torch

from kernels.configurations import trial
from kernels.rms_norm import reference
from kernels.rms_norm import triton as fused
from tests.kernels.cases import error


@pytest.mark.parametrize(
    ("rows", "dim", "gated", "weighted", "silu"),
    [
        (37, 16, False, True, False),
        (50, 20, True, True, True),
        (5, 100, True, False, False),
        (9, 40, False, False, False),
        (1, 4, True, True, True),
    ],
)
def test_results_and_gradients(rows: int, dim: int, gated: bool, weighted: bool, silu: bool) -> None:
    """Several tiles a program, the last one ragged."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 2 * dim, generator=generator)[:, :dim]
    weight = torch.randn(dim, generator=generator) if weighted else None
    gate = torch.randn(rows, dim, generator=generator) if gated else None
    dy = torch.randn(rows, dim, generator=generator)
    exact = {n: t.double().requires_grad_() for n, t in (("x", x), ("weight", weight), ("gate", gate)) if t is not None}
    if gated:
        y = reference.gated_rms_norm(**exact, activation="silu" if silu else "sigmoid")
    else:
        y = reference.rms_norm(**exact)
    wanted = dict(zip(exact, torch.autograd.grad((y * dy).sum(), list(exact.values())), strict=True))
    with trial("rms_norm", {"elements": 128, "warps": 4, "programs": 3, "stages": 3}):
        assert error(fused.forward(x, weight, gate, 1e-6, silu), y) < 1e-5
        found = dict(zip(("x", "weight", "gate"), fused.backward(x, weight, gate, 1e-6, silu, dy), strict=True))
    for name, expected in wanted.items():
        assert error(found[name], expected) < 1e-5, name


def test_many_programs_share_a_weights_gradient() -> None:
    """More of them than are summed at a time."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(300, 10, generator=generator) for _ in range(2))
    weight = torch.randn(10, generator=generator)
    exact = weight.double().requires_grad_()
    y = reference.rms_norm(x.double(), exact)
    (wanted,) = torch.autograd.grad(y, exact, dy.double())
    with trial("rms_norm", {"elements": 16, "warps": 4, "programs": 300, "stages": 1}):
        _, found, _ = fused.backward(x, weight, None, 1e-6, False, dy)
    assert error(found, wanted) < 1e-5


def test_a_weight_with_strides() -> None:
    x, dy, wide = torch.randn(5, 8), torch.randn(5, 8), torch.randn(16)
    for weight in (wide[::2], wide[:1].expand(8)):
        exact = weight.double().requires_grad_()
        y = reference.rms_norm(x.double(), exact)
        (wanted,) = torch.autograd.grad(y, exact, dy.double())
        assert error(fused.forward(x, weight, None, 1e-6, False), y) < 1e-5
        assert error(fused.backward(x, weight, None, 1e-6, False, dy)[1], wanted) < 1e-5
