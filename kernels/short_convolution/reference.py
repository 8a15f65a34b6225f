"""The short causal convolution token by token: the definition that the other form is tested against."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kernels.packing import one_by_one
from kernels.short_convolution.chunked import check_operands
from kernels.short_convolution.recurrent import state_after, step


def short_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    *,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Same arguments and result as `kernels.short_convolution.short_convolution`."""
    if cu_seqlens is not None:
        return one_by_one(
            "short_convolution", lambda own: (short_convolution(own, weight, bias, activation),), cu_seqlens, (x,)
        )[0]
    check_operands(x, weight, bias, activation)
    state = state_after(x[:, :0], weight.shape[1])
    outputs = []
    for t in range(x.shape[1]):
        y, state = step(x[:, t], weight, bias, activation, state=state)
        outputs.append(y)
    return torch.stack(outputs, 1)
