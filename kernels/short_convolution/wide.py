"""The short causal convolution with 9 taps and more on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.short_convolution import wide_kernels

# Tokens of one program: of the filter, and of the sums of the taps' gradients.
_TOKENS, _SUMMED = 64, 512
# Of channels, for each thread.
_BYTES = 4


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """y [batch, length, dim]; arguments as for the operation."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _filter(x, weight, bias, None, y, silu=silu)
    return y


def backward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x in its type, of weight [dim, width] and bias [dim] in float32."""
    batch, length, dim = x.shape
    width, dy = weight.shape[1], dy.contiguous()
    groups = -(-width // 8)
    x = x if x.stride(2) == 1 else x.contiguous()
    dz = dy
    if silu:
        dz = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        _filter(x, weight, bias, dy, dz, silu=True)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _filter(dz, weight, None, None, dx, reverse=True)
    channels, blocks = _channels(x), batch * -(-length // _SUMMED)
    partial = torch.empty(blocks, 8 * groups, dim, dtype=torch.float32, device=x.device)
    wide_kernels.taps_kernel[(blocks * -(-dim // channels), groups)](
        x, dz, partial, length, dim, x.stride(0), x.stride(1), GROUPS=groups, TOKENS=_SUMMED, BD=channels, num_warps=1
    )
    by_weight = partial.sum(0)[8 * groups - width :].T.clone(memory_format=torch.contiguous_format)
    by_bias = torch.zeros(dim, device=x.device) if bias is None else dz.sum((0, 1), dtype=torch.float32)
    return dx, by_weight, by_bias


def _filter(
    x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor | None, y: Tensor, *, silu: bool = False,
    reverse: bool = False,
) -> None:  # fmt: skip
    """Writes to y: the output, or with dy its product with the activation's slope."""
    batch, length, dim = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    groups, channels = -(-weight.shape[1] // 8), _channels(x)
    missing = 8 * groups - weight.shape[1]
    taps = F.pad(weight.float().T, (0, 0, missing, 0)).contiguous()
    wide_kernels.filter_kernel[(batch * -(-length // _TOKENS) * -(-dim // channels),)](
        x, taps, bias, dy, y, length, dim, x.stride(0), x.stride(1), GROUPS=groups, MISSING=missing,
        BIAS=bias is not None, SILU=silu, SLOPE=dy is not None,
        REVERSE=reverse, TOKENS=_TOKENS, BD=channels, num_warps=1,
    )  # fmt: skip


def _channels(x: Tensor) -> int:
    return min(32 * max(_BYTES // x.element_size(), 1), 1 << (x.shape[2] - 1).bit_length())
