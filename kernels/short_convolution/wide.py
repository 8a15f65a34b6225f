"""The short causal convolution with 9 taps and more on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.configurations import choose
from kernels.operands import adjacent, contiguous
from kernels.packing import counted
from kernels.short_convolution import wide_kernels


@dataclass(frozen=True)
class Sizes:
    """Tokens of one program: of the filter, and `summed` of the sums of the taps' gradients, multiples of 8; `bytes` of
    channels, for each thread."""

    tokens: int
    summed: int
    bytes: int


# What `make tune` tries, entry after entry.
SPACE: dict[str, tuple[Any, ...]] = {
    "tokens": (32, 64, 128, 256),
    "summed": (256, 512, 1024),
    "bytes": (2, 4, 8),
}


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, documents: Tensor | None, silu: bool) -> Tensor:
    """y [batch, length, dim]; arguments as for the operation."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    runs = None if documents is None else counted(documents)
    _filter(x, weight, bias, runs, None, y, silu=silu)
    return y


def backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, documents: Tensor | None, silu: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x in its type, of weight [dim, width] and bias [dim] in float32."""
    batch, length, dim = x.shape
    width, dy = weight.shape[1], dy.contiguous()
    groups, runs = -(-width // 8), None if documents is None else counted(documents)
    x = adjacent(x)
    dz = dy
    if silu:
        dz = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        _filter(x, weight, bias, runs, dy, dz, silu=True)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _filter(dz, weight, None, runs, None, dx, reverse=True)
    sizes, channels = _sizes(x, weight)
    blocks = batch * -(-length // sizes.summed)
    partial = torch.empty(blocks, 8 * groups, dim, dtype=torch.float32, device=x.device)
    wide_kernels.taps_kernel[(blocks * -(-dim // channels), groups)](
        x, runs, dz, partial, length, dim, x.stride(0), x.stride(1), GROUPS=groups, APART=runs is not None,
        TOKENS=sizes.summed, BD=channels, num_warps=1,
    )  # fmt: skip
    by_weight = partial.sum(0)[8 * groups - width :].T.clone(memory_format=torch.contiguous_format)
    by_bias = torch.zeros(dim, device=x.device) if bias is None else dz.sum((0, 1), dtype=torch.float32)
    return dx, by_weight, by_bias


def _filter(
    x: Tensor, weight: Tensor, bias: Tensor | None, runs: Tensor | None, dy: Tensor | None, y: Tensor, *,
    silu: bool = False, reverse: bool = False,
) -> None:  # fmt: skip
    """Writes to y: the output, or with dy its product with the activation's slope."""
    batch, length, dim = x.shape
    x = adjacent(x)
    groups, (sizes, channels) = -(-weight.shape[1] // 8), _sizes(x, weight)
    missing = 8 * groups - weight.shape[1]
    taps = F.pad(weight.float().T, (0, 0, missing, 0)).contiguous()
    wide_kernels.filter_kernel[(batch * -(-length // sizes.tokens) * -(-dim // channels),)](
        x, taps, contiguous(bias), runs, dy, y, length, dim, x.stride(0), x.stride(1), GROUPS=groups, MISSING=missing,
        BIAS=bias is not None, APART=runs is not None, SILU=silu, SLOPE=dy is not None, REVERSE=reverse,
        TOKENS=sizes.tokens, BD=channels, num_warps=1,
    )  # fmt: skip


def _sizes(x: Tensor, weight: Tensor) -> tuple[Sizes, int]:
    """And channels of a program."""
    shape = {"bits": 8 * x.itemsize, "width": x.shape[2], "taps": weight.shape[1]}
    sizes = choose("short_convolution_wide", Sizes, x.device, **shape)
    return sizes, min(32 * max(sizes.bytes // x.itemsize, 1), 1 << (x.shape[2] - 1).bit_length())
