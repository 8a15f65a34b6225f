"""The definition: all logits at once, differentiated by autograd. Any precision, any device, much memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear_cross_entropy.operands import checked_vocab


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    vocab: int | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Same arguments and result as `kernels.linear_cross_entropy.linear_cross_entropy`."""
    rows = checked_vocab(hidden, weight, targets, vocab)
    logits = (hidden * scale) @ weight[:rows].to(hidden.dtype).T
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")


def linear_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    vocab: int | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Same arguments and result as `kernels.linear_cross_entropy.linear_log_likelihood`."""
    rows = checked_vocab(hidden, weight, targets, vocab)
    logits = (hidden * scale) @ weight[:rows].to(hidden.dtype).T
    loss = F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")
    largest = logits.max(1, keepdim=True).values
    first = torch.where(logits == largest, torch.arange(rows, device=logits.device), rows).min(1).values
    return -loss, (first == targets) & (targets != ignore_index)
