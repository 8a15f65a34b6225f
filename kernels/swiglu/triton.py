"""The fused form for GPUs: each number is read once and written once."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from kernels.configurations import choose
from kernels.operands import adjacent

_VECTOR = 16  # numbers whose alignment all moves of 16 bytes can use


@dataclass(frozen=True)
class Sizes:
    """Numbers of one program (enough loads in flight, few registers) and its warps."""

    elements: int
    warps: int


# What `make tune` tries, entry after entry.
SPACE: dict[str, tuple[Any, ...]] = {"elements": (512, 1024, 2048, 4096, 8192), "warps": (1, 2, 4, 8)}


@triton.jit
def _place(rows, parts, x_row, PARTS: tl.constexpr, PART: tl.constexpr):
    """Of this program's PARTS parts [PARTS, PART]: where each number is in a result laid out densely, where its gate is
    in x and in x's gradient, and which exist. Rows follow each other, so no lane idles where a row ends."""
    first = tl.program_id(0).to(tl.int64) * PARTS
    within = (first % parts).to(tl.int32) + tl.arange(0, PARTS)
    row = first // parts + within // parts
    column = (within % parts * PART)[:, None] + tl.arange(0, PART)[None, :]
    start = row[:, None] * PART
    at = start * parts + column
    return at, start * x_row + column, start * (2 * parts) + column, (row < rows)[:, None]


@triton.jit
def forward_kernel(x_ptr, y_ptr, rows, parts, x_row, PARTS: tl.constexpr, PART: tl.constexpr):
    at, gates, _, inside = _place(rows, parts, x_row, PARTS, PART)
    gate = tl.load(x_ptr + gates, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x_ptr + gates + parts * PART, mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * value
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(x_ptr, dy_ptr, dx_ptr, rows, parts, x_row, PARTS: tl.constexpr, PART: tl.constexpr):
    at, gates, to, inside = _place(rows, parts, x_row, PARTS, PART)
    gate = tl.load(x_ptr + gates, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x_ptr + gates + parts * PART, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    dgate = dy * value * (share + silu * (1.0 - share))
    tl.store(dx_ptr + to, dgate.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dx_ptr + to + parts * PART, (dy * silu).to(dx_ptr.dtype.element_ty), mask=inside)


def forward(x: Tensor) -> Tensor:
    """x [rows, 2 dim] -> [rows, dim]."""
    x = adjacent(x)
    y = x.new_empty(x.shape[0], x.shape[1] // 2)
    grid, sizes, options = _launch(x)
    forward_kernel[grid](x, y, *sizes, **options)
    return y


def backward(x: Tensor, dy: Tensor) -> Tensor:
    """x [rows, 2 dim], dy [rows, dim] -> gradient of x, contiguous."""
    x, dy = adjacent(x), dy.contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, sizes, options = _launch(x)
    backward_kernel[grid](x, dy, dx, *sizes, **options)
    return dx


def _launch(x: Tensor) -> tuple[tuple[int], tuple[int, int, int], dict[str, int]]:
    """Programs; rows, and parts of a row and of the distance between x's rows; what is compiled in.

    Parts are runs of numbers that divide both. Of a number that is not known at compile time Triton asks only whether
    16 divides it; for the widths of a SwiGLU, which 8 often divides, it would move two bytes at a time.
    """
    rows, dim = x.shape[0], x.shape[1] // 2
    sizes = choose("swiglu", Sizes, x.device, bits=8 * x.itemsize, width=dim)
    part = math.gcd(dim, x.stride(0), _VECTOR)
    parts = max(1, sizes.elements // part)
    grid = (triton.cdiv(rows * (dim // part), parts),)
    return grid, (rows, dim // part, x.stride(0) // part), {"PARTS": parts, "PART": part, "num_warps": sizes.warps}
