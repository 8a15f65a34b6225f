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
    """y_t = activation(bias + sum_w weight_w x_{t - width + 1 + w}), channel by channel; x is zero before its start.

    The convolution before the mixer of H3 (arXiv 2212.14052), Mamba (arXiv 2312.00752) and DeltaNet
    (arXiv 2406.06484). The last weight is the current token's. Its cost grows with the width.

    Args:
        x: [batch, length, dim].
        weight: [dim, width].
        bias: [dim] or None.
        activation: "silu" or None.

    Returns:
        y [batch, length, dim] in x's dtype; computed in float32 (float64 for float64 x).

    Raises:
        ValueError: shapes that disagree, another activation.
        TypeError: an operand that is not floating point.
    """
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
    if activation not in (None, "silu"):
        raise ValueError(f"short_convolution: activation is {activation!r}, expected 'silu' or None")
