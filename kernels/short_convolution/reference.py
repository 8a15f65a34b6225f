"""The short causal convolution token by token: the definition that the other form is tested against."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kernels.operands import working_dtype
from kernels.short_convolution.chunked import check_operands


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
) -> Tensor:
    """Same arguments and result as `kernels.short_convolution.short_convolution`."""
    check_operands(x, weight, bias, activation)
    dtype, width = working_dtype(x), weight.shape[1]
    window = [torch.zeros_like(x[:, 0], dtype=dtype) for _ in range(width)]
    outputs = []
    for t in range(x.shape[1]):
        window = [*window[1:], x[:, t].to(dtype)]
        y = torch.stack([token * weight[:, w].to(dtype) for w, token in enumerate(window)]).sum(0)
        if bias is not None:
            y = y + bias.to(dtype)
        outputs.append(y * torch.sigmoid(y) if activation == "silu" else y)
    return torch.stack(outputs, 1).to(x.dtype)
