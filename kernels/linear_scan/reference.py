"""The linear recurrence token by token: the definition that the parallel form is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear_scan.chunked import check_operands
from kernels.operands import working_dtype


def linear_scan(x: Tensor, log_decay: Tensor) -> Tensor:
    """Same arguments and result as `kernels.linear_scan.linear_scan`."""
    check_operands(x, log_decay)
    dtype = working_dtype(x)
    decay = log_decay.to(dtype).expand(x.shape).exp()
    states = [x[:, 0].to(dtype)]
    for t in range(1, x.shape[1]):
        states.append(decay[:, t] * states[-1] + x[:, t].to(dtype))
    return torch.stack(states, 1).to(x.dtype)
