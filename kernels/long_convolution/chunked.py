"""The long causal convolution by blocks and FFTs, in plain PyTorch. README.md derives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.operands import check_shapes, quarantine, without_autocast, working_dtype

# Longest block that is multiplied by a matrix; from here on Fourier transforms are cheaper.
_BLOCK = 64


def long_convolution(x: Tensor, filter: Tensor) -> Tensor:
    """y_t = sum_s filter_s x_{t-s}, channel by channel; x is zero before its start.

    The operator of H3 (arXiv 2212.14052) and Hyena (arXiv 2302.10866). Time grows as length * log(length)^2. A token's
    value never enters an earlier output, not even as rounding error, which one transform over the whole length
    could not promise.

    Args:
        x: [batch, length, dim].
        filter: [dim, width]; entries beyond the length have no effect.

    Returns:
        y [batch, length, dim] in x's dtype; computed in float32 (float64 for float64 x). After a non-finite x all
        results of its channel are nan.

    Raises:
        ValueError: shapes that disagree.
        TypeError: an operand that is not floating point.
    """
    check_operands(x, filter)
    dtype = working_dtype(x)
    with without_autocast(x):
        mark, (clean,) = quarantine(x.to(dtype).permute(2, 0, 1).contiguous().unsqueeze(-1))
        y = _convolution(clean.squeeze(-1), filter.to(dtype))
        if mark is not None:
            y = y + mark.cumsum(-1)
    return y.permute(1, 2, 0).contiguous().to(x.dtype)


def check_operands(x: Tensor, filter: Tensor) -> None:
    """Raises for shapes that disagree."""
    check_shapes("long_convolution", x=(x, "batch length dim"), filter=(filter, "dim width"))


class _Convolution(torch.autograd.Function):
    """x [dim, batch, length] with taps [dim, width]. The gradients, which may round, take one transform each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        return _convolve(x, taps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, taps = ctx.saved_tensors
        length, width = x.shape[-1], min(x.shape[-1], taps.shape[-1])
        size = 2 * length
        spectrum = torch.fft.rfft(grad, n=size)
        grad_x = torch.fft.irfft(spectrum * torch.fft.rfft(taps[:, :width], n=size).conj().unsqueeze(1), n=size)
        grad_taps = torch.fft.irfft((spectrum * torch.fft.rfft(x, n=size).conj()).sum(1), n=size)
        return grad_x[..., :length], F.pad(grad_taps[:, :width], (0, taps.shape[-1] - width))


_convolution = cast(Callable[..., Tensor], _Convolution.apply)


def _convolve(x: Tensor, taps: Tensor) -> Tensor:
    dim, batch, length = x.shape
    halvings = (-(-length // _BLOCK) - 1).bit_length()
    block = -(-length // (1 << halvings))
    total = block << halvings
    x = F.pad(x, (0, total - length))
    taps = F.pad(taps[:, :total], (0, total - min(total, taps.shape[1])))
    y = (x.reshape(dim, -1, block) @ _toeplitz(taps[:, :block])).view(dim, batch, total)
    while block < total:
        # What the first half of each pair of blocks adds to the second half.
        earlier = x.view(dim, batch, -1, 2, block)[:, :, :, 0]
        response = torch.fft.rfft(taps[:, : 2 * block]).view(dim, 1, 1, -1)
        later = torch.fft.irfft(torch.fft.rfft(earlier, n=2 * block) * response, n=2 * block)[..., block:]
        y.view(dim, batch, -1, 2, block)[:, :, :, 1] += later
        block *= 2
    return y[..., :length]


def _toeplitz(taps: Tensor) -> Tensor:
    """[dim, size] -> [dim, size, size] with taps_{j - i} at row i, column j >= i, and 0 elsewhere.

    Rows of length 2 size, written one after the other and read with rows one shorter, move by one place a row.
    """
    dim, size = taps.shape
    rows = F.pad(taps, (0, size)).unsqueeze(1).expand(dim, size, 2 * size).reshape(dim, -1)
    return rows[:, : size * (2 * size - 1)].view(dim, size, 2 * size - 1)[..., :size]
