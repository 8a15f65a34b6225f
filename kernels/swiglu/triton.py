"""The fused form for GPUs: each number is read once and written once."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from kernels.configurations import choose
from kernels.operands import adjacent


@dataclass(frozen=True)
class Sizes:
    """Numbers of one program (enough loads in flight, few registers), columns of them at most, warps."""

    elements: int
    columns: int
    warps: int


# What `make tune` tries, entry after entry.
SPACE: dict[str, tuple[Any, ...]] = {
    "elements": (1024, 2048, 4096, 8192),
    "columns": (128, 256, 512, 1024),
    "warps": (2, 4, 8),
}


@triton.jit
def _place(rows, dim, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's rows and columns, where the gates begin, and which exist."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < dim)[None, :]
    return row, column, row[:, None] * stride + column[None, :], inside


@triton.jit
def forward_kernel(x_ptr, y_ptr, rows, dim, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column, at, inside = _place(rows, dim, stride, ROWS, COLUMNS)
    gate = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x_ptr + at + dim, mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * value
    tl.store(y_ptr + row[:, None] * dim + column[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(x_ptr, dy_ptr, dx_ptr, rows, dim, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column, at, inside = _place(rows, dim, stride, ROWS, COLUMNS)
    gate = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x_ptr + at + dim, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row[:, None] * dim + column[None, :], mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    to = row[:, None] * (2 * dim) + column[None, :]
    dgate = dy * value * (share + silu * (1.0 - share))
    tl.store(dx_ptr + to, dgate.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dx_ptr + to + dim, (dy * silu).to(dx_ptr.dtype.element_ty), mask=inside)


def forward(x: Tensor) -> Tensor:
    """x [rows, 2 dim] -> [rows, dim]."""
    x = adjacent(x)
    y = x.new_empty(x.shape[0], x.shape[1] // 2)
    grid, options = _launch(y)
    forward_kernel[grid](x, y, *y.shape, x.stride(0), **options)
    return y


def backward(x: Tensor, dy: Tensor) -> Tensor:
    """x [rows, 2 dim], dy [rows, dim] -> gradient of x, contiguous."""
    x, dy = adjacent(x), dy.contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, options = _launch(dy)
    backward_kernel[grid](x, dy, dx, *dy.shape, x.stride(0), **options)
    return dx


def _launch(y: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    rows, dim = y.shape
    sizes = choose("swiglu", Sizes, y.device, bits=8 * y.itemsize, width=dim)
    columns = min(triton.next_power_of_2(dim), sizes.columns)
    height = max(1, sizes.elements // columns)
    grid = (triton.cdiv(rows, height), triton.cdiv(dim, columns))
    return grid, {"ROWS": height, "COLUMNS": columns, "num_warps": sizes.warps}
