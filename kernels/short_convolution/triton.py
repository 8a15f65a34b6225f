"""The short causal convolution on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.configurations import choose
from kernels.operands import adjacent, contiguous
from kernels.short_convolution import triton_kernels


@dataclass(frozen=True)
class Walk:
    """How one pass goes through a sequence.

    `tokens` of one program, the largest number first: more of them read fewer neighbours twice and, backward, leave
    fewer partial sums, but there have to be so many `programs` of them to keep the memory busy. `ahead`: tokens that
    are read while as many are computed. `bytes`: of channels, for each thread.
    """

    tokens: Sequence[int]
    programs: int
    ahead: int
    bytes: int


# What `make tune` tries, entry after entry.
SPACE: dict[str, tuple[Any, ...]] = {
    "forward.ahead": (2, 4, 8),
    "forward.bytes": (4, 8, 16),
    "forward.programs": (2048, 4096, 8192),
    "forward.tokens": ([64, 32], [128, 64, 32], [256, 128, 64, 32]),
    "backward.ahead": (2, 4, 8),
    "backward.bytes": (4, 8, 16),
    "backward.programs": (1024, 2048, 4096),
    "backward.tokens": ([128, 64], [256, 128, 64], [512, 256, 128, 64]),
}


def _walks(forward: dict[str, Any], backward: dict[str, Any]) -> tuple[Walk, Walk]:
    return Walk(**forward), Walk(**backward)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, documents: Tensor | None, silu: bool) -> Tensor:
    """y [batch, length, dim]; arguments as for the operation."""
    batch, length, dim = x.shape
    x = adjacent(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    walk, channels, tokens = _sizes(x, weight, 0)
    triton_kernels.forward_kernel[(batch * -(-length // tokens) * -(-dim // channels),)](
        x, weight.contiguous(), contiguous(bias), contiguous(documents), y, length, dim, x.stride(0), x.stride(1),
        WIDTH=weight.shape[1], BIAS=bias is not None, APART=documents is not None, SILU=silu, TOKENS=tokens,
        AHEAD=walk.ahead, BD=channels, num_warps=1, maxnreg=_most_registers(x, weight, documents, channels, 64),
    )  # fmt: skip
    return y


def backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, documents: Tensor | None, silu: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x in its type, of weight [dim, width] and bias [dim] in float32."""
    batch, length, dim = x.shape
    width = weight.shape[1]
    x = adjacent(x)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    walk, channels, tokens = _sizes(x, weight, 1)
    blocks = batch * -(-length // tokens)
    partial = torch.empty(blocks, width + 1, dim, dtype=torch.float32, device=x.device)
    triton_kernels.backward_kernel[(blocks * -(-dim // channels),)](
        x, weight.contiguous(), contiguous(bias), contiguous(documents), dy.contiguous(), dx, partial, length, dim,
        x.stride(0), x.stride(1),
        WIDTH=width, BIAS=bias is not None, APART=documents is not None, SILU=silu, TOKENS=tokens,
        AHEAD=walk.ahead, BD=channels, num_warps=1, maxnreg=_most_registers(x, weight, documents, channels, 128),
    )  # fmt: skip
    total = partial.sum(0)
    # A copy even where the transposed view is contiguous: results of a custom operation must not share memory.
    return dx, total[:width].T.clone(memory_format=torch.contiguous_format), total[width]


def _sizes(x: Tensor, weight: Tensor, direction: int) -> tuple[Walk, int, int]:
    """And channels and tokens of a program, which is one warp."""
    batch, length, dim = x.shape
    shape = {"bits": 8 * x.itemsize, "width": dim, "taps": weight.shape[1]}
    walk = choose("short_convolution", _walks, x.device, **shape)[direction]
    channels = min(32 * max(walk.bytes // x.itemsize, 1), 1 << (dim - 1).bit_length())
    for tokens in walk.tokens:
        if batch * -(-length // tokens) * -(-dim // channels) >= walk.programs:
            break
    return walk, channels, tokens


def _most_registers(x: Tensor, weight: Tensor, documents: Tensor | None, channels: int, least: int) -> int | None:
    """So many that with documents as many programs run at a time as without, which takes no more."""
    if documents is None or x.shape[2] % 16 or x.stride(1) % 16:  # what is not aligned takes more either way
        return None
    return least if channels * weight.shape[1] <= 512 else min(2 * least, 255)
