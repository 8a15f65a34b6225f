"""The definitions, in the precision of their operands."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """Same arguments and result as `kernels.rms_norm.rms_norm`."""
    y = x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    activation: Literal["silu", "sigmoid"] = "silu",
) -> Tensor:
    """Same arguments and result as `kernels.rms_norm.gated_rms_norm`."""
    s = 1 / (1 + torch.exp(-gate))
    return rms_norm(x, weight, eps=eps) * (gate * s if activation == "silu" else s)
