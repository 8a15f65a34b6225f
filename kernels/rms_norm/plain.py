"""In plain PyTorch, on any device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels.operands import working_dtype


def normed(x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float, silu: bool) -> Tensor:
    """Both operations, computed in float32 (float64 for float64 x); without a gate `silu` means nothing."""
    dtype = working_dtype(x)
    y = F.rms_norm(x.to(dtype), x.shape[-1:], None if weight is None else weight.to(dtype), eps)
    if gate is not None:
        wide = gate.to(dtype)
        y = y * (F.silu(wide) if silu else wide.sigmoid())
    return y.to(x.dtype)
