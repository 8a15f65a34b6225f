"""Causal attention with all weights at once: the definition that the operation is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.operands import working_dtype


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    log_decay: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Same arguments and result as `kernels.causal_attention.causal_attention`."""
    dtype, length = working_dtype(v), q.shape[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = scale * torch.einsum("blhk,bmhk->bhlm", q.to(dtype), k.to(dtype))
    if log_decay is not None:
        place = torch.arange(length, device=q.device)
        logits = logits + (place[:, None] - place) * log_decay.to(dtype)[:, None, None]
    seen = torch.ones(1, length, length, dtype=torch.bool, device=q.device).tril()
    if documents is not None:
        seen = seen & (documents.unsqueeze(-1) == documents.unsqueeze(-2))
    weights = logits.masked_fill(~seen.unsqueeze(1), -torch.inf).softmax(-1)
    return torch.einsum("bhlm,bmhv->blhv", weights, v.to(dtype)).to(v.dtype)
