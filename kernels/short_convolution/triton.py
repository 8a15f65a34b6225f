"""The short causal convolution on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.short_convolution import triton_kernels

# Tokens that are read while as many are computed.
_AHEAD = 4
# Tokens of one program, forward and backward, the largest number first: more of them read fewer neighbours twice and,
# backward, leave fewer partial sums, but there have to be _PROGRAMS of them to keep the memory busy.
_TOKENS = ((128, 64, 32), (256, 128, 64))
_PROGRAMS = (4096, 2048)
# Of channels, for each thread.
_BYTES = 8


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """y [batch, length, dim]; arguments as for the operation."""
    batch, length, dim = x.shape
    x = _with_adjacent_channels(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    channels, tokens = _sizes(x, 0)
    triton_kernels.forward_kernel[(batch * -(-length // tokens) * -(-dim // channels),)](
        x, weight.contiguous(), bias, y, length, dim, x.stride(0), x.stride(1), WIDTH=weight.shape[1],
        BIAS=bias is not None, SILU=silu, TOKENS=tokens, AHEAD=_AHEAD, BD=channels, num_warps=1,
    )  # fmt: skip
    return y


def backward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x in its type, of weight [dim, width] and bias [dim] in float32."""
    batch, length, dim = x.shape
    width = weight.shape[1]
    x = _with_adjacent_channels(x)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    channels, tokens = _sizes(x, 1)
    blocks = batch * -(-length // tokens)
    partial = torch.empty(blocks, width + 1, dim, dtype=torch.float32, device=x.device)
    triton_kernels.backward_kernel[(blocks * -(-dim // channels),)](
        x, weight.contiguous(), bias, dy.contiguous(), dx, partial, length, dim, x.stride(0), x.stride(1), WIDTH=width,
        BIAS=bias is not None, SILU=silu, TOKENS=tokens, AHEAD=_AHEAD, BD=channels, num_warps=1,
    )  # fmt: skip
    total = partial.sum(0)
    # A copy even where the transposed view is contiguous: results of a custom operation must not share memory.
    return dx, total[:width].T.clone(memory_format=torch.contiguous_format), total[width]


def _sizes(x: Tensor, direction: int) -> tuple[int, int]:
    """Channels and tokens of a program, which is one warp."""
    batch, length, dim = x.shape
    channels = min(32 * max(_BYTES // x.element_size(), 1), 1 << (dim - 1).bit_length())
    for tokens in _TOKENS[direction]:
        if batch * -(-length // tokens) * -(-dim // channels) >= _PROGRAMS[direction]:
            break
    return channels, tokens


def _with_adjacent_channels(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()
