"""The delta rule on a GPU: Triton kernels, as operators of PyTorch that torch.compile does not look into."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.delta_rule import backward_kernels, chunked, forward_kernels
from kernels.delta_rule.plan import Plan, arguments, plan, strides
from kernels.delta_rule.tiles import FACTORS, TRITON_TYPES
from kernels.delta_rule.walk import link, walk, walk_back
from kernels.operands import adjacent, contiguous, output_gradient
from kernels.second_order import second_derivatives


def _scan(
    p: Plan, transition: Tensor, addition: Tensor, kept: Tensor | None, boundary: Tensor | None,
    before: Tensor, after: Tensor, *, backward: bool,
) -> None:  # fmt: skip
    """Writes the states between chunks to `before` and the last one to `after`."""
    rows, chunks = transition.shape[:2]
    sizes = p.sizes.states
    part = min(sizes.part, p.value)
    span = chunks
    if chunks >= p.sizes.long and rows * (p.value // part) < p.sizes.few:
        span = 1 << (chunks.bit_length() // 2)
    segments = -(-chunks // span)

    def run(boundary: Tensor | None, after: Tensor, columns: int, *, linked: bool = False, local: bool = False) -> None:
        forward_kernels.states[(columns // part, rows * segments)](
            transition, addition, kept, boundary, before, after, chunks, segments, span, *shape,
            BK=p.key, BV=p.value, PART=part, GATED=kept is not None,
            BOUNDED=boundary is not None and not linked, LINKED=linked, LOCAL=local, BACKWARD=backward,
            DOT=TRITON_TYPES[p.dot], PRECISION=p.precision, STAGES=sizes.stages, num_warps=sizes.warps,
        )  # fmt: skip

    shape = after.shape[2:]
    if segments == 1:
        run(boundary, after, p.value)
        return
    local = after.new_empty(rows, segments, p.value + p.key, p.key)
    run(None, local, p.key + p.value, local=True)
    run(link(p, local, local, boundary, shape), after, p.value, linked=True)


@torch.library.custom_op("kernels::delta_rule", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, documents: Tensor | None,
    initial_state: Tensor | None, scale: float, normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output and final state, and for the backward pass: inverse, transition, kept, sums, before, sound, factors,
    residual. Where sequences are walked through, the scores are beside the inverse, and the transitions are those of
    segments, if there are some, below what these make of zeros; else the last two are empty."""
    p, results = plan(q, k, v, log_decay), _empty(q, k, v, log_decay)
    out, after, inverse, transition, kept, sums, before, sound, *_ = results
    q, k, v, beta = adjacent(q), adjacent(k), adjacent(v), beta.contiguous()
    log_decay, documents, boundary = contiguous(log_decay), contiguous(documents), contiguous(initial_state)
    if p.walks:
        walk(p, q, k, v, beta, log_decay, documents, boundary, results, scale, normalise=normalise)
        return results
    (batch, length, heads, key), value = q.shape, v.shape[-1]
    chunks = sound.shape[1]
    addition = torch.empty_like(before)
    grid, sizes = (batch * chunks * heads,), (length, heads, chunks, key, value)
    part = p.sizes.transitions.part
    forward_kernels.transitions[grid](
        k, v, beta, log_decay, documents, inverse, transition, addition, kept, sums, sound,
        *strides(k, v), *sizes,
        **arguments(p, p.sizes.transitions, q, v, log_decay, documents, normalise)
        | {"PART": min(part, p.key), "PART_V": min(part, p.value)},
    )  # fmt: skip
    gates = None if log_decay is None and documents is None else kept
    _scan(p, transition, addition, gates, boundary, before, after, backward=False)
    forward_kernels.outputs[grid](
        q, k, v, beta, sums, documents, inverse, before, sound, out, scale, *strides(q, k, v),
        *sizes, **arguments(p, p.sizes.outputs, q, v, log_decay, documents, normalise),
    )  # fmt: skip
    return results


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, documents: Tensor | None,
    initial_state: Tensor | None, scale: float, normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty(q, k, v, log_decay)


def _empty(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    p = plan(q, k, v, log_decay)
    batch, length, heads, key = q.shape
    rows, chunks, value = batch * heads, -(-length // p.chunk), v.shape[-1]
    square = (p.chunk, p.chunk)
    tiles = (2 if p.dot == torch.bfloat16 else 1) + p.walks
    factors, residual = ((FACTORS.value, p.chunk), (p.value, p.chunk)) if p.walks else ((0, 0), (0, 0))
    if p.walks:
        transition = v.new_empty(rows, p.segments if p.segments > 1 else 0, p.value + p.key, p.key, dtype=torch.float32)
    else:
        transition = v.new_empty(rows, chunks, p.key, p.key, dtype=p.dot)
    return (
        v.new_empty(batch, length, heads, value),
        v.new_empty(batch, heads, key, value, dtype=torch.float32),
        v.new_empty(rows, chunks, tiles, *square, dtype=p.dot),
        transition,
        v.new_empty(rows, chunks, dtype=torch.float32),
        v.new_empty(0 if log_decay is None else rows, chunks, 2, p.chunk, dtype=torch.float32),
        v.new_empty(rows, chunks, p.value, p.key, dtype=p.dot),
        v.new_empty(rows, chunks, dtype=torch.int32),
        v.new_empty(rows, chunks, *factors, dtype=torch.float32),
        v.new_empty(rows, chunks, *residual, dtype=p.dot),
    )


@torch.library.custom_op("kernels::delta_rule_backward", mutates_args=())
def _backward(
    out_grad: Tensor | None, after_grad: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor,
    log_decay: Tensor | None, documents: Tensor | None, initial_state: Tensor | None, inverse: Tensor,
    transition: Tensor, kept: Tensor, sums: Tensor, before: Tensor, sound: Tensor, factors: Tensor,
    residual: Tensor, scale: float, normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, beta, log_decay (empty without one) and initial_state."""
    p, results = plan(q, k, v, log_decay), _empty_gradients(q, k, v, beta, log_decay)
    q_grad, k_grad, v_grad, beta_grad, log_decay_grad, state_grad = results
    q, k, v, beta = adjacent(q), adjacent(k), adjacent(v), beta.contiguous()
    out_grad = output_gradient(out_grad, v)
    log_decay, documents, boundary = contiguous(log_decay), contiguous(documents), contiguous(after_grad)
    if p.walks:
        kept_back = (inverse, transition, kept, sums, before, sound, factors, residual)
        walk_back(p, q, k, v, beta, log_decay, documents, boundary, out_grad, kept_back, results, scale,
                  normalise=normalise)  # fmt: skip
        return results
    (batch, length, heads, key), value = q.shape, v.shape[-1]
    chunks = sound.shape[1]
    addition, states_grad = torch.empty_like(before), torch.empty_like(before)
    grid, sizes = (batch * chunks * heads,), (length, heads, chunks, key, value)
    qk = strides(q, k)
    backward_kernels.adjoint_additions[grid](
        q, k, beta, sums, documents, inverse, sound, out_grad, addition, scale, *qk, *strides(out_grad), *sizes,
        **arguments(p, p.sizes.adjoint, q, v, log_decay, documents, normalise),
    )  # fmt: skip
    gates = None if log_decay is None and documents is None else kept
    _scan(p, transition, addition, gates, boundary, states_grad, state_grad, backward=True)
    backward_kernels.gradients[grid](
        q, k, v, beta, sums, documents, inverse, before, sound, out_grad, states_grad,
        q_grad, k_grad, v_grad, beta_grad, log_decay_grad, scale, *qk, *strides(v, out_grad), *sizes,
        FLIP=p.sizes.gradients.flip,
        **arguments(p, p.sizes.gradients, q, v, log_decay, documents, normalise),
    )  # fmt: skip
    return results


@_backward.register_fake
def _(
    out_grad: Tensor | None, after_grad: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor,
    log_decay: Tensor | None, documents: Tensor | None, initial_state: Tensor | None, inverse: Tensor,
    transition: Tensor, kept: Tensor, sums: Tensor, before: Tensor, sound: Tensor, factors: Tensor,
    residual: Tensor, scale: float, normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_gradients(q, k, v, beta, log_decay)


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q_grad, k_grad, v_grad, beta_grad = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, beta)
    )
    decay_grad = beta.new_empty(0) if log_decay is None else log_decay.new_empty(log_decay.shape)
    state_grad = v.new_empty(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=torch.float32)
    return q_grad, k_grad, v_grad, beta_grad, decay_grad, state_grad


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, ctx.scale, ctx.normalise = inputs
    ctx.save_for_backward(*operands, *output[2:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, beta, log_decay, documents, initial_state, *kept = ctx.saved_tensors
    *found, decay_grad, state_grad = _backward(
        grads[0], grads[1], q, k, v, beta, log_decay, documents, initial_state, *kept, ctx.scale, ctx.normalise
    )
    found += [None if log_decay is None else decay_grad, None]
    found.append(None if initial_state is None else state_grad.to(initial_state.dtype))
    return *found, None, None


def _remember_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.scale, ctx.normalise = inputs[-2:]
    ctx.save_for_backward(*inputs[:9])
    ctx.set_materialize_grads(False)


def _differentiate_twice(ctx: Any, *weights: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives are those of the chunked form."""

    *saved, documents, initial = ctx.saved_tensors

    def plain(*operands: Tensor) -> tuple[Tensor, Tensor]:
        *tokens, initial_state = operands
        return chunked.delta_rule(
            *tokens, scale=ctx.scale, initial_state=initial_state, normalise=ctx.normalise, documents=documents
        )

    *found, of_state = second_derivatives(plain, saved[:2], (*saved[2:], initial), weights)
    return *found, None, of_state, *[None] * 10


_forward.register_autograd(_differentiate, setup_context=_remember)
_backward.register_autograd(_differentiate_twice, setup_context=_remember_backward)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, documents: Tensor | None,
    initial_state: Tensor | None, *, scale: float, normalise: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `kernels.delta_rule.delta_rule`, for operands that it sends here; not log_decay and documents."""
    out, state, *_ = _forward(q, k, v, beta, log_decay, documents, initial_state, scale, normalise)
    return out, state
