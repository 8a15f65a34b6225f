"""The short causal convolution as a sum of shifted products, in plain PyTorch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.operands import check_shapes, working_dtype
from kernels.packing import counted, kept

AXES = {"x": "batch length dim", "weight": "dim width", "bias": "dim"}


def short_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """`kernels.short_convolution.short_convolution` on any device."""
    check_operands(x, weight, bias, activation)
    dtype, length, width = working_dtype(x), x.shape[1], weight.shape[1]
    # Rows, since products with a column take five times as long on a CPU.
    taps = weight.to(dtype).mT.contiguous()
    padded = F.pad(x.to(dtype), (0, 0, width - 1, 0))
    seen = [padded[:, offset : offset + length] for offset in range(width)]
    if documents is not None:
        runs = counted(documents)
        before = F.pad(runs, (width - 1, 0)).unfold(1, length, 1).unbind(1)
        seen = [kept(tokens, own == runs) for tokens, own in zip(seen[:-1], before, strict=False)] + seen[-1:]
    y = seen[0] * taps[0]
    for tokens, tap in zip(seen[1:], taps[1:], strict=True):
        y = torch.addcmul(y, tokens, tap)
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
