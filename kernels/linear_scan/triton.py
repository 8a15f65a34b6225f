"""The linear recurrence on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.configurations import choose
from kernels.linear_scan import triton_kernels
from kernels.linear_scan.operation import KEPT_EVERY
from kernels.operands import adjacent


@dataclass(frozen=True)
class Sizes:
    """`bytes` of channels, for each thread; `programs`, each one warp, that keep the memory busy: for fewer, sequences
    are cut into segments of `least_tokens` or more, which are read twice."""

    bytes: int
    programs: int
    least_tokens: int
    most_segments: int


# What `make tune` tries, entry after entry.
SPACE: dict[str, tuple[Any, ...]] = {
    "bytes": (2, 4, 8),
    "programs": (512, 1024, 2048, 4096),
    "least_tokens": (64, 128, 256),
    "most_segments": (32, 64, 128),
}


def forward(x: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """h [batch, length, dim], and float32 states for `backward`; log_decay [batch, length, dim] or [dim]."""
    batch, length, dim = x.shape
    x, g = adjacent(x), _decays(log_decay)
    h = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    kept = torch.empty(batch, -(-length // KEPT_EVERY), dim, dtype=torch.float32, device=x.device)
    segments, tokens, channels = _sizes(x)
    grid = (batch * segments * -(-dim // channels),)
    sizes = (length, dim, x.stride(0), x.stride(1), *_strides(g))
    options = {
        "segments": segments, "tokens": tokens, "BLOCK": KEPT_EVERY, "BD": channels, "CONSTANT": g.dim() == 1,
        "num_warps": 1,
    }  # fmt: skip
    ends, totals = torch.empty(2, batch, segments, dim, dtype=torch.float32, device=x.device)
    if segments > 1:
        triton_kernels.ends_kernel[grid](x, g, ends, totals, *sizes, REVERSE=False, **options)
    triton_kernels.forward_kernel[grid](x, g, h, kept, ends, totals, *sizes, **options)
    return h, kept


def backward(x: Tensor, log_decay: Tensor, kept: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x in its type and of log_decay: in its type, for a constant one in float32."""
    batch, length, dim = x.shape
    constant = log_decay.dim() == 1
    x, g, dh = adjacent(x), _decays(log_decay), dh.contiguous()
    segments, tokens, channels = _sizes(x)
    grid = (batch * segments * -(-dim // channels),)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    shape, dtype = ((batch, segments, dim), torch.float32) if constant else (x.shape, log_decay.dtype)
    dg = torch.empty(shape, dtype=dtype, device=x.device)
    options = {
        "segments": segments, "tokens": tokens, "BLOCK": KEPT_EVERY, "BD": channels, "CONSTANT": g.dim() == 1,
        "num_warps": 1,
    }  # fmt: skip
    ends, totals = torch.empty(2, batch, segments, dim, dtype=torch.float32, device=x.device)
    if segments > 1:
        triton_kernels.ends_kernel[grid](
            dh, g, ends, totals, length, dim, dh.stride(0), dh.stride(1), *_strides(g), REVERSE=True, **options
        )
    triton_kernels.backward_kernel[grid](
        x, g, dh, kept, dx, dg, ends, totals, length, dim, x.stride(0), x.stride(1), *_strides(g), **options
    )  # fmt: skip
    return dx, dg.sum((0, 1)) if constant else dg


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Segments of a sequence, tokens of a segment, channels of a program."""
    batch, length, dim = x.shape
    sizes = choose("linear_scan", Sizes, x.device, bits=8 * x.itemsize, width=dim)
    channels = min(32 * max(sizes.bytes // x.itemsize, 1), 1 << (dim - 1).bit_length())
    programs = batch * -(-dim // channels)
    wanted = min(-(-sizes.programs // programs), length // sizes.least_tokens, sizes.most_segments)
    tokens = -(-length // (max(wanted, 1) * KEPT_EVERY)) * KEPT_EVERY
    return -(-length // tokens), tokens, channels


def _decays(log_decay: Tensor) -> Tensor:
    """As the kernels take them: constant ones [dim] as decays, exact to float32's rounding."""
    return log_decay.double().exp().float() if log_decay.dim() == 1 else adjacent(log_decay)


def _strides(g: Tensor) -> tuple[int, int]:
    """From sequence to sequence and from token to token; a constant one is the same everywhere."""
    return (0, 0) if g.dim() == 1 else (g.stride(0), g.stride(1))
