"""Linear attention on a GPU: Triton kernels, as operators of PyTorch that torch.compile does not look into."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.linear_attention import backward_kernels, chunked, forward_kernels, fused
from kernels.linear_attention.plan import Plan, arguments, device_of, plan, strides
from kernels.operands import adjacent, contiguous, output_gradient
from kernels.second_order import second_derivatives


def _common(p: Plan, q: Tensor, v: Tensor, log_decay: Tensor | None, bonus: Tensor | None) -> dict[str, Any]:
    """Compile-time arguments. TERMS: in how many bfloat16 numbers log-decays are summed; 0: not in bfloat16."""
    terms = 1 if log_decay is not None and log_decay.dtype == torch.bfloat16 else 2
    return arguments(p, p.sizes.chunk, q, v, log_decay) | {
        "PK": p.sizes.part,
        "PV": p.sizes.part,
        "DIAGONAL": log_decay is not None and log_decay.ndim == 4,
        "BONUS": bonus is not None,
        "TERMS": terms if p.dot == torch.bfloat16 else 0,
        "num_warps": p.sizes.warps,
        "num_stages": 1,
    }


def _scan(
    p: Plan, addition: Tensor, kept: Tensor, boundary: Tensor | None, before: Tensor, after: Tensor,
    log_decay: Tensor | None, *, backward: bool,
) -> None:  # fmt: skip
    """Writes the states between chunks to `before` and the last one to `after`."""
    rows, chunks = before.shape[:2]
    forward_kernels.states[(rows * (p.key // p.sizes.state_rows) * (p.value // p.sizes.part),)](
        addition, kept, boundary, before, after, chunks, *after.shape[2:],
        BK=p.key, BV=p.value, ROWS=p.sizes.state_rows, PV=p.sizes.part,
        SCALAR=log_decay is not None and log_decay.ndim == 3, DIAGONAL=log_decay is not None and log_decay.ndim == 4,
        BOUNDED=boundary is not None, BACKWARD=backward, STAGES=p.sizes.state_stages, num_warps=p.sizes.state_warps,
    )  # fmt: skip


@torch.library.custom_op("kernels::linear_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, bonus: Tensor | None, initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output and final state, and for the backward pass: before, kept, scores, sound."""
    p, results = plan(q, k, v, log_decay, bonus), _empty(q, k, v, log_decay, bonus)
    out, after, before, kept, scores, sound = results
    q, k, v, log_decay, bonus = adjacent(q), adjacent(k), adjacent(v), contiguous(log_decay), contiguous(bonus)
    if p.fused:
        fused.walk(p, q, k, v, log_decay, contiguous(initial_state), out, after, sound, scale)
        return results
    (_, length, heads, key), value = q.shape, v.shape[-1]
    sizes = (*strides(q, k, v), length, heads, sound.shape[1], key, value)
    common = _common(p, q, v, log_decay, bonus)
    addition = torch.empty_like(before)
    with device_of(q):
        forward_kernels.additions[(sound.numel(),)](
            q, k, v, log_decay, bonus, addition, kept, scores, sound, scale, *sizes, **common
        )
        _scan(p, addition, kept, contiguous(initial_state), before, after, log_decay, backward=False)
        forward_kernels.outputs[(sound.numel(), p.value // p.sizes.part)](
            q, k, v, log_decay, bonus, before, scores, sound, out, scale, *sizes, **common
        )
    return results


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, bonus: Tensor | None, initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty(q, k, v, log_decay, bonus)


def _empty(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, bonus: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    p = plan(q, k, v, log_decay, bonus)
    batch, length, heads, key = q.shape
    chunk, value = p.sizes.chunk, v.shape[-1]
    rows, chunks = batch * heads, -(-length // chunk)
    axes = 0 if log_decay is None else log_decay.ndim
    out, after = v.new_empty(batch, length, heads, value), v.new_empty(batch, heads, key, value, dtype=torch.float32)
    if p.fused:
        before, kept, scores = (v.new_empty(0) for _ in range(3))
        return out, after, before, kept, scores, v.new_empty(rows, dtype=torch.int32)
    return (
        out,
        after,
        v.new_empty(rows, chunks, p.key, p.value, dtype=p.dot),
        v.new_empty(*{0: (0,), 3: (rows, chunks), 4: (rows, chunks, p.key)}[axes], dtype=torch.float32),
        v.new_empty(*((rows, chunks, chunk, chunk) if axes == 4 else (0,)), dtype=p.dot),
        v.new_empty(rows, chunks, dtype=torch.int32),
    )


@torch.library.custom_op("kernels::linear_attention_backward", mutates_args=())
def _backward(
    out_grad: Tensor | None, after_grad: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    bonus: Tensor | None, initial_state: Tensor | None, before: Tensor, kept: Tensor, scores: Tensor, sound: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, log_decay and bonus (empty without them) and initial_state."""
    p, results = plan(q, k, v, log_decay, bonus), _empty_grads(q, k, v, log_decay, bonus)
    q_grad, k_grad, v_grad, decay_grad, bonus_grad, state_grad = results
    q, k, v, log_decay, bonus = adjacent(q), adjacent(k), adjacent(v), contiguous(log_decay), contiguous(bonus)
    out_grad = output_gradient(out_grad, v)
    if p.fused:
        boundaries = contiguous(initial_state), contiguous(after_grad)
        fused.walk_back(p, q, k, v, log_decay, *boundaries, sound, out_grad, *results[:4], state_grad, scale)
        return results
    (batch, length, heads, key), value = q.shape, v.shape[-1]
    rows, chunks, chunk = *sound.shape, p.sizes.chunk
    sizes = (length, heads, chunks, key, value)
    common = _common(p, q, v, log_decay, bonus)
    parts = p.key // p.sizes.part
    scalar = log_decay is not None and log_decay.ndim == 3
    by_part = q.new_empty(parts, batch, length, heads, dtype=torch.float32) if scalar else decay_grad
    by_chunk = q.new_empty(batch, heads, chunks, key if bonus is not None else 0, dtype=torch.float32)
    addition, states_grad = torch.empty_like(before), torch.empty_like(before)
    scores_grad = before.new_empty(rows, chunks, chunk, chunk)
    with device_of(q):
        backward_kernels.adjoint_additions[(sound.numel(),)](
            q, v, log_decay, sound, out_grad, addition, scores_grad, scale, *strides(q, v, out_grad), *sizes, **common
        )
        _scan(p, addition, kept, contiguous(after_grad), states_grad, state_grad, log_decay, backward=True)
        backward_kernels.gradients[(sound.numel(), parts)](
            q, k, v, log_decay, bonus, before, sound, out_grad, states_grad, scores_grad,
            q_grad, k_grad, by_part, by_chunk, scale, batch * length * heads, *strides(q, k, v, out_grad), *sizes,
            **(common | {"num_warps": p.sizes.gradient_warps}),
        )  # fmt: skip
        backward_kernels.value_gradients[(sound.numel(), p.value // p.sizes.part)](
            q, k, log_decay, bonus, scores, sound, out_grad, states_grad, v_grad, scale,
            *strides(q, k, out_grad), *sizes, **common,
        )  # fmt: skip
    if scalar:
        decay_grad.copy_(by_part.sum(0))
    if bonus is not None:
        bonus_grad.copy_(by_chunk.sum((0, 2)))
    return results


@_backward.register_fake
def _(
    out_grad: Tensor | None, after_grad: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    bonus: Tensor | None, initial_state: Tensor | None, before: Tensor, kept: Tensor, scores: Tensor, sound: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_grads(q, k, v, log_decay, bonus)


def _empty_grads(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, bonus: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q_grad, k_grad, v_grad = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    decay_grad, bonus_grad = (q.new_empty(0) if x is None else x.new_empty(x.shape) for x in (log_decay, bonus))
    state_grad = v.new_empty(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=torch.float32)
    return q_grad, k_grad, v_grad, decay_grad, bonus_grad, state_grad


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, ctx.scale = inputs
    ctx.save_for_backward(*operands, *output[2:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, log_decay, bonus, initial_state, *kept = ctx.saved_tensors
    found = _backward(grads[0], grads[1], q, k, v, log_decay, bonus, initial_state, *kept, ctx.scale)
    *grads, decay_grad, bonus_grad, state_grad = found
    return (
        *grads,
        None if log_decay is None else decay_grad,
        None if bonus is None else bonus_grad,
        None if initial_state is None else state_grad.to(initial_state.dtype),
        None,
    )


def _remember_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.scale = inputs[-1]
    ctx.save_for_backward(*inputs[:8])
    ctx.set_materialize_grads(False)


def _differentiate_twice(ctx: Any, *weights: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives are those of the chunked form."""

    def plain(*operands: Tensor) -> tuple[Tensor, Tensor]:
        *tokens, bonus, initial_state = operands
        return chunked.linear_attention(*tokens, bonus=bonus, scale=ctx.scale, initial_state=initial_state)

    saved = ctx.saved_tensors
    return *second_derivatives(plain, saved[:2], saved[2:], weights), *[None] * 5


_forward.register_autograd(_differentiate, setup_context=_remember)
_backward.register_autograd(_differentiate_twice, setup_context=_remember_backward)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    bonus: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `kernels.linear_attention.linear_attention`, for operands that it sends here."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, state, *_ = _forward(q, k, v, log_decay, bonus, initial_state, scale)
    return out, state
