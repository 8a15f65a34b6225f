"""The GPU form of SwiGLU in Triton's interpreter; run by test_swiglu.py in its own process."""

from __future__ import annotations

import pytest
import torch

from kernels.swiglu import reference
from kernels.swiglu import triton as fused
from tests.kernels.cases import error


@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (7, 17), (40, 300)])
def test_result_and_gradient(rows: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 2 * dim + 3, generator=generator)[:, : 2 * dim] * 4
    dy = torch.randn(rows, dim, generator=generator)
    exact = x.double().requires_grad_()
    y = reference.swiglu(exact)
    (wanted,) = torch.autograd.grad(y, exact, dy.double())
    assert error(fused.forward(x), y) < 1e-5
    assert error(fused.backward(x, dy), wanted) < 1e-5
