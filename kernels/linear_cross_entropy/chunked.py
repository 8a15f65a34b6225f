"""Some tokens at a time, in plain PyTorch: the logits of one chunk are turned into gradients in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.operands import without_autocast, working_dtype

# Logits of one chunk, of all its tokens together.
_CHUNK_ELEMENTS = 2**24


def loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and its gradients for an upstream gradient of one.

    Computed in float32 (float64 for float64 hidden).

    Args:
        hidden: [tokens, dim].
        weight: [vocab, dim].
        targets: [tokens].

    Returns:
        Sum of nats []; gradient of hidden and of weight, each in its operand's type.

    Raises:
        IndexError: a target outside the vocabulary, where looking does not wait for a device.
    """
    dtype = working_dtype(hidden)
    rows = weight[:vocab].to(dtype)
    losses = torch.zeros((), dtype=dtype, device=hidden.device)
    by_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    by_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
    with without_autocast(hidden):
        for part, tokens, real, target, logits in _chunks(hidden, rows, targets, ignore_index, scale):
            log_total = logits.logsumexp(1, keepdim=True)
            losses += (log_total - logits.gather(1, target)).masked_fill(~real, 0).sum()
            p = logits.sub_(log_total).exp_()
            p.scatter_add_(1, target, torch.full_like(log_total, -1)).masked_fill_(~real, 0)
            by_hidden[part] = (p @ rows).mul_(scale)
            by_weight[:vocab].addmm_(p.T, tokens, alpha=scale)
    return losses, by_hidden, by_weight.to(weight.dtype)


def log_likelihood(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each target [tokens], and whether it is the first of the most likely ids [tokens]."""
    dtype = working_dtype(hidden)
    rows = weight[:vocab].to(dtype)
    found = torch.empty(targets.shape, dtype=dtype, device=hidden.device)
    best = torch.empty(targets.shape, dtype=torch.bool, device=hidden.device)
    ids = torch.arange(vocab, device=hidden.device)
    with without_autocast(hidden):
        for part, _, real, target, logits in _chunks(hidden, rows, targets, ignore_index, scale):
            of_target = logits.gather(1, target)
            found[part] = (of_target - logits.logsumexp(1, keepdim=True)).masked_fill_(~real, 0).squeeze(1)
            # argmax may return any of several equal ones.
            rivals = (logits > of_target) | ((logits == of_target) & (ids < target)) | logits.isnan()
            best[part] = ~rivals.any(1) & real.squeeze(1)
    return found, best


def _chunks(
    hidden: Tensor, rows: Tensor, targets: Tensor, ignore_index: int, scale: float
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Which tokens, these, whether their targets are real, the targets (0 for ignored ones), the logits."""
    size = max(1, _CHUNK_ELEMENTS // rows.shape[0])
    for first in range(0, hidden.shape[0], size):
        part = slice(first, first + size)
        tokens = hidden[part].to(rows.dtype)
        real = (targets[part] != ignore_index).unsqueeze(1)
        target = targets[part].unsqueeze(1).where(real, 0)
        _check_targets(target, rows.shape[0])
        yield part, tokens, real, target, (tokens @ rows.T).mul_(scale)


def _check_targets(targets: Tensor, vocab: int) -> None:
    if targets.device.type == "cpu" and not bool(((targets >= 0) & (targets < vocab)).all()):
        outside = targets[(targets < 0) | (targets >= vocab)]
        raise IndexError(f"linear_cross_entropy: target {int(outside[0])} is outside the vocabulary of {vocab}")
