"""The short causal convolution as a sum of shifted products, in plain PyTorch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.operands import check_shapes, working_dtype

AXES = {"x": "batch length dim", "weight": "dim width", "bias": "dim"}


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
) -> Tensor:
    """`kernels.short_convolution.short_convolution` on any device."""
    check_operands(x, weight, bias, activation)
    dtype, length, width = working_dtype(x), x.shape[1], weight.shape[1]
    padded = F.pad(x.to(dtype), (0, 0, width - 1, 0))
    taps = weight.to(dtype).unbind(1)
    y = padded[:, :length] * taps[0]
    for offset in range(1, width):
        y = torch.addcmul(y, padded[:, offset : offset + length], taps[offset])
    if bias is not None:
        y = y + bias.to(dtype)
    return (y if activation is None else F.silu(y)).to(x.dtype)


def check_operands(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    """Raises for shapes that disagree and for an unknown activation."""
    operands = {"x": x, "weight": weight, "bias": bias}
    check_shapes("short_convolution", **{name: (operands[name], AXES[name]) for name in AXES})
    check_activation(activation)


def check_activation(activation: str | None) -> None:
    """Raises for an unknown one."""
    if activation not in (None, "silu"):
        raise ValueError(f"short_convolution: activation is {activation!r}, expected 'silu' or None")
