"""The GPU form of SwiGLU in Triton's interpreter; run by test_swiglu.py in its own process."""

from __future__ import annotations

import pytest
import torch

from kernels.swiglu import reference
from kernels.swiglu import triton as fused
from tests.kernels.cases import error


@pytest.mark.parametrize(
    ("rows", "dim", "spare"), [(1, 1, 3), (7, 17, 3), (40, 300, 3), (9, 24, 0), (5, 272, 4), (40, 304, 16)]
)
def test_result_and_gradient(rows: int, dim: int, spare: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = (4 * torch.randn(rows, 2 * dim + spare, generator=generator))[:, : 2 * dim]
    dy = torch.randn(rows, dim, generator=generator)
    exact = x.double().requires_grad_()
    y = reference.swiglu(exact)
    (wanted,) = torch.autograd.grad(y, exact, dy.double())
    assert error(fused.forward(x), y) < 1e-5
    assert error(fused.backward(x, dy), wanted) < 1e-5
