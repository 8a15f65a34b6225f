"""The short causal convolution for one token, for decoding."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.operands import check_shapes, working_dtype
from kernels.short_convolution.chunked import AXES, check_activation


def step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    *,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token of `kernels.short_convolution.short_convolution`, given the tokens before it.

    Args:
        x: [batch, dim].
        weight: [dim, width].
        bias: [dim] or None.
        activation: "silu" or None.
        state: [batch, width - 1, dim], the inputs before this one, the latest last: of the step before, or from
            `state_after`.

    Returns:
        y [batch, dim] in x's dtype, and the next state in the dtype of the state.

    Raises:
        ValueError: shapes that disagree, another activation.
        TypeError: an operand that is not floating point.
    """
    check_shapes("short_convolution step", x=(x, "batch dim"), weight=(weight, AXES["weight"]), bias=(bias, "dim"))
    check_activation(activation)
    expected = [x.shape[0], weight.shape[1] - 1, x.shape[1]]
    if list(state.shape) != expected:
        raise ValueError(f"short_convolution step: state has shape {list(state.shape)}, expected {expected}")
    dtype = working_dtype(x)
    seen = torch.cat((state.to(dtype), x.to(dtype).unsqueeze(1)), 1)
    y = (seen * weight.to(dtype).T).sum(1)
    if bias is not None:
        y = y + bias.to(dtype)
    following = torch.cat((state, x.to(state.dtype).unsqueeze(1)), 1)[:, 1:]
    return (y if activation is None else F.silu(y)).to(x.dtype), following


def state_after(x: Tensor, width: int) -> Tensor:
    """What `step` needs after the tokens x [batch, length, dim], perhaps none: [batch, width - 1, dim]."""
    kept = x[:, max(x.shape[1] - (width - 1), 0) :]
    return F.pad(kept, (0, 0, width - 1 - kept.shape[1], 0))
