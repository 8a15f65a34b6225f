"""The long causal convolution term by term: the definition that the other form is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.long_convolution.chunked import check_operands
from kernels.operands import working_dtype


def long_convolution(x: Tensor, filter: Tensor) -> Tensor:
    """Same arguments and result as `kernels.long_convolution.long_convolution`."""
    check_operands(x, filter)
    dtype = working_dtype(x)
    outputs = []
    for t in range(x.shape[1]):
        y = torch.zeros_like(x[:, 0], dtype=dtype)
        for lag in range(min(t + 1, filter.shape[1])):
            y = y + filter[:, lag].to(dtype) * x[:, t - lag].to(dtype)
        outputs.append(y)
    return torch.stack(outputs, 1).to(x.dtype)
