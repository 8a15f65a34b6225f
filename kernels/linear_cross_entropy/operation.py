"""The public functions: which form computes them, and their registration with autograd and the compiler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.linear_cross_entropy import chunked
from kernels.linear_cross_entropy.operands import checked_vocab
from kernels.operands import fused_allowed, working_dtype


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    vocab: int | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Cross-entropy of the softmax of scale · hidden · weightᵀ, summed over the tokens with a real target.

    The logits exist for one chunk of tokens at a time. Gradients are computed on the way, so that the backward pass
    only multiplies them with the upstream gradient. Under autocast on a GPU, hidden and weight are lowered to its
    type; the products add up in float32, and so does the weight's gradient. Once differentiable.

    Args:
        hidden: [tokens, dim].
        weight: [rows, dim], one row for each token id; its gradient has its type.
        targets: [tokens] int64.
        ignore_index: target of tokens that do not count.
        vocab: rows beyond the first `vocab` are padding, with neither probability nor gradient; None: all are real.
        scale: factor of the logits.

    Returns:
        Sum of nats [], float32 (float64 for float64 hidden); divide by the number of real targets for the mean.

    Raises:
        ValueError: shapes that disagree, a vocabulary larger than the weight.
        TypeError: dtypes other than floating point and int64.
        IndexError: a target outside the vocabulary, on CPU; on a GPU the result is nan instead.
    """
    real = checked_vocab(hidden, weight, targets, vocab)
    hidden = _lowered(hidden)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss: Tensor = _loss_and_gradients(hidden, weight, targets, ignore_index, real, scale)[0]
        return loss
    found: Tensor = _log_likelihood(hidden, weight, targets, ignore_index, real, scale)[0]
    return -found.sum()


def linear_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    vocab: int | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each target, for evaluation: no gradients, and no logits in memory.

    Args: those of `linear_cross_entropy`.

    Returns:
        Natural log of the target's probability [tokens], float32 (float64 for float64 hidden), 0 for ignored targets;
        whether the target is the most likely id [tokens] bool, of equal ones the first, False for ignored targets.
    """
    real = checked_vocab(hidden, weight, targets, vocab)
    found: tuple[Tensor, Tensor] = _log_likelihood(
        _lowered(hidden).detach(), weight.detach(), targets, ignore_index, real, scale
    )
    return found


def _lowered(hidden: Tensor) -> Tensor:
    """In the type that autocast would multiply in; on CPU the operation keeps to float32."""
    if hidden.device.type == "cuda" and torch.is_autocast_enabled("cuda") and hidden.dtype != torch.float64:
        return hidden.to(torch.get_autocast_dtype("cuda"))
    return hidden


def _fused(hidden: Tensor) -> bool:
    halves = (torch.bfloat16, torch.float16)
    return hidden.is_cuda and hidden.dtype in halves and fused_allowed()


@torch.library.custom_op("asiarch_kernels::linear_cross_entropy", mutates_args=())
def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    if _fused(hidden):
        from kernels.linear_cross_entropy import triton as fused

        with torch.cuda.device(hidden.device):
            return fused.loss_and_gradients(hidden, weight, targets, ignore_index, vocab, scale)
    return chunked.loss_and_gradients(hidden, weight, targets, ignore_index, vocab, scale)


@_loss_and_gradients.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    loss = hidden.new_empty((), dtype=working_dtype(hidden))
    return loss, torch.empty_like(hidden, memory_format=contiguous), torch.empty_like(weight, memory_format=contiguous)


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(output[1], output[2])


def _scale_gradients(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return None, None, None, None, None, None
    by_hidden, by_weight = (
        gradient * upstream if needed else None
        for gradient, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:2], strict=True)
    )
    return by_hidden, by_weight, None, None, None, None


_loss_and_gradients.register_autograd(_scale_gradients, setup_context=_keep_gradients)


@torch.library.custom_op("asiarch_kernels::linear_log_likelihood", mutates_args=())
def _log_likelihood(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab: int, scale: float
) -> tuple[Tensor, Tensor]:
    if _fused(hidden):
        from kernels.linear_cross_entropy import triton as fused

        with torch.cuda.device(hidden.device):
            return fused.log_likelihood(hidden, weight, targets, ignore_index, vocab, scale)
    return chunked.log_likelihood(hidden, weight, targets, ignore_index, vocab, scale)


@_log_likelihood.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab: int, scale: float
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(targets.shape, dtype=working_dtype(hidden)), targets.new_empty(
        targets.shape, dtype=torch.bool
    )
