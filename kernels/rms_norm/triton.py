"""On a GPU: a row is read once and stays in registers; the backward pass computes its root mean square again."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from kernels.configurations import choose
from kernels.operands import adjacent, contiguous


@dataclass(frozen=True)
class Sizes:
    """Elements of one program's tile and its warps; programs of the backward pass, each with a partial sum of the
    weight's gradient, and how many of their tiles are under way."""

    elements: int
    warps: int
    programs: int
    stages: int


# What `make tune` tries, entry after entry.
SPACE: dict[str, tuple[Any, ...]] = {
    "elements": (1024, 2048, 4096, 8192),
    "warps": (1, 2, 4, 8),
    "programs": (264, 528, 1056),
    "stages": (1, 2, 3, 4),
}


@triton.jit
def _tile(ptr, row, rows, d, dim, stride):
    mask = (row < rows)[:, None] & (d < dim)[None, :]
    return tl.load(ptr + row.to(tl.int64)[:, None] * stride + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    x_ptr, w_ptr, g_ptr, y_ptr, rows, dim, x_row, g_row, eps,
    WEIGHT: tl.constexpr, GATE: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BD)
    x = _tile(x_ptr, row, rows, d, dim, x_row)
    y = x * (1 / tl.sqrt(tl.sum(x * x, 1) / dim + eps))[:, None]
    if WEIGHT:
        y *= tl.load(w_ptr + d, mask=d < dim, other=0.0).to(tl.float32)[None, :]
    if GATE:
        g = _tile(g_ptr, row, rows, d, dim, g_row)
        y *= g * tl.sigmoid(g) if SILU else tl.sigmoid(g)
    mask = (row < rows)[:, None] & (d < dim)[None, :]
    tl.store(y_ptr + row.to(tl.int64)[:, None] * dim + d[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    x_ptr, w_ptr, g_ptr, dy_ptr, dx_ptr, dg_ptr, partial_ptr, rows, dim, x_row, g_row, eps, steps,
    WEIGHT: tl.constexpr, GATE: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """`steps` tiles of ROWS rows; leaves the sum over them of the weight's gradient in partial [programs, dim]."""
    d = tl.arange(0, BD)
    if WEIGHT:
        w = tl.load(w_ptr + d, mask=d < dim, other=0.0).to(tl.float32)
        by_weight = tl.zeros([ROWS, BD], tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        row = (tl.program_id(0) * steps + step) * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (d < dim)[None, :]
        place = row.to(tl.int64)[:, None] * dim + d[None, :]
        x = _tile(x_ptr, row, rows, d, dim, x_row)
        dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
        scale = 1 / tl.sqrt(tl.sum(x * x, 1) / dim + eps)
        x *= scale[:, None]
        if GATE:
            g = _tile(g_ptr, row, rows, d, dim, g_row)
            s = tl.sigmoid(g)
            y = x
            if WEIGHT:
                y *= w[None, :]
            slope = s * (1 + g * (1 - s)) if SILU else s * (1 - s)
            tl.store(dg_ptr + place, (dy * y * slope).to(dg_ptr.dtype.element_ty), mask=mask)
            dy *= g * s if SILU else s
        if WEIGHT:
            by_weight += dy * x
            dy *= w[None, :]
        dx = (dy - x * (tl.sum(dy * x, 1) / dim)[:, None]) * scale[:, None]
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if WEIGHT:
        tl.store(partial_ptr + tl.program_id(0) * dim + d, tl.sum(by_weight, 0), mask=d < dim)


@triton.jit
def weight_gradient_kernel(partial_ptr, dw_ptr, programs, dim, PROGRAMS: tl.constexpr, CHANNELS: tl.constexpr):
    """partial [programs, dim] summed over programs, in a fixed order."""
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([PROGRAMS, CHANNELS], tl.float32)
    for first in range(0, programs, PROGRAMS):
        program = first + tl.arange(0, PROGRAMS)
        mask = (program < programs)[:, None] & (d < dim)[None, :]
        total += tl.load(partial_ptr + program[:, None] * dim + d[None, :], mask=mask, other=0.0)
    tl.store(dw_ptr + d, tl.sum(total, 0), mask=d < dim)


def forward(x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float, silu: bool) -> Tensor:
    """[rows, dim]; weight [dim], gate [rows, dim]."""
    rows, dim = x.shape
    x, weight = adjacent(x), contiguous(weight)
    gate = None if gate is None else adjacent(gate)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sizes, each, width = _sizes(x, gate)
    forward_kernel[(-(-rows // each),)](
        x, weight, gate, y, rows, dim, x.stride(0), 0 if gate is None else gate.stride(0), eps,
        WEIGHT=weight is not None, GATE=gate is not None, SILU=silu, ROWS=each, BD=width, num_warps=sizes.warps,
    )  # fmt: skip
    return y


def backward(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float, silu: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and gate in their types, of weight in float32; empty for operands that are None."""
    rows, dim = x.shape
    x, weight = adjacent(x), contiguous(weight)
    gate = None if gate is None else adjacent(gate)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dg = x.new_empty(0) if gate is None else torch.empty(gate.shape, dtype=gate.dtype, device=x.device)
    sizes, each, width = _sizes(x, gate)
    steps = -(-rows // (each * sizes.programs))
    programs = -(-rows // (each * steps))
    partial = torch.empty(0 if weight is None else programs, dim, dtype=torch.float32, device=x.device)
    dw = torch.empty(0 if weight is None else dim, dtype=torch.float32, device=x.device)
    backward_kernel[(programs,)](
        x, weight, gate, dy.contiguous(), dx, dg, partial, rows, dim, x.stride(0),
        0 if gate is None else gate.stride(0), eps, steps,
        WEIGHT=weight is not None, GATE=gate is not None, SILU=silu, ROWS=each, BD=width, STAGES=sizes.stages,
        num_warps=sizes.warps,
    )  # fmt: skip
    if weight is not None:
        # PyTorch's sum takes 5 to 8 microseconds, this 2: eight channels are one sector of memory, so that many
        # programs share the work.
        weight_gradient_kernel[(triton.cdiv(dim, 8),)](
            partial, dw, programs, dim, PROGRAMS=256, CHANNELS=8, num_warps=4
        )
    return dx, dw, dg


def _sizes(x: Tensor, gate: Tensor | None) -> tuple[Sizes, int, int]:
    """And rows of a tile, its width."""
    dim = x.shape[1]
    width = 1 << (dim - 1).bit_length()
    shape = {"bits": 8 * x.itemsize, "width": dim, "gated": int(gate is not None)}
    sizes = choose("rms_norm", Sizes, x.device, **shape)
    return sizes, max(sizes.elements // width, 1), width
