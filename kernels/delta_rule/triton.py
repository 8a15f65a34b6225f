"""The delta rule on a GPU: Triton kernels, as operators of PyTorch that torch.compile does not look into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from kernels.configurations import choose
from kernels.delta_rule import backward_kernels, chunked, forward_kernels
from kernels.delta_rule.tiles import TRITON_TYPES
from kernels.operands import adjacent, product_type
from kernels.second_order import second_derivatives


@dataclass(frozen=True)
class Launch:
    """Sizes of one kernel's programs: columns at once, warps, stages; `flip`: tiles are transposed."""

    part: int
    warps: int
    stages: int
    registers: int | None = None
    flip: bool = False


@dataclass(frozen=True)
class Sizes:
    """Tokens of a chunk, and sizes of each kernel. `long` chunks at least, and fewer programs than `few`, make it worth
    to scan segments of a sequence side by side."""

    chunk: int
    long: int
    few: int
    transitions: Launch
    states: Launch
    outputs: Launch
    adjoint: Launch
    gradients: Launch


@dataclass(frozen=True)
class Plan:
    """Everything the kernels need to know about shapes and types at compile time."""

    sizes: Sizes
    key: int
    value: int
    dot: torch.dtype
    precision: str


# What `make tune` tries, entry after entry.
SPACE: dict[str, tuple[Any, ...]] = {
    "chunk": (32, 64),
    **{f"{kernel}.warps": (1, 2, 4, 8) for kernel in ("transitions", "states", "outputs", "adjoint", "gradients")},
    **{f"{kernel}.part": (16, 32, 64, 128) for kernel in ("transitions", "states", "outputs", "adjoint", "gradients")},
    **{f"{kernel}.registers": (None, 96, 128, 168) for kernel in ("transitions", "outputs", "adjoint", "gradients")},
    "states.stages": (1, 2, 3, 4),
    "gradients.flip": (False, True),
}


def _sizes(chunk: int, long: int, few: int, **kernels: dict[str, Any]) -> Sizes:
    return Sizes(chunk, long, few, **{name: Launch(**sizes) for name, sizes in kernels.items()})


def plan(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None) -> Plan:
    dot, precision = product_type(q, k, v)
    key, value = (max(16, triton.next_power_of_2(x.shape[-1])) for x in (k, v))
    if dot == torch.bfloat16 and max(key, value) > 32:
        key, value = max(key, 64), max(value, 64)  # narrower tiles fault now and then in Triton 3.6's wgmma
    shape = {"bits": 8 * dot.itemsize, "width": int(max(key, value)), "gated": int(log_decay is not None)}
    return Plan(choose("delta_rule", _sizes, v.device, **shape), key, value, dot, precision)


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


def _common(
    p: Plan, launch: Launch, q: Tensor, v: Tensor, log_decay: Tensor | None, documents: Tensor | None, normalise: bool
) -> dict[str, Any]:
    return {
        "C": p.sizes.chunk,
        "BK": p.key,
        "BV": p.value,
        "PART": min(launch.part, p.value),
        "EVEN_K": q.shape[-1] == p.key,
        "EVEN_V": v.shape[-1] == p.value,
        "GATED": log_decay is not None,
        "APART": documents is not None,
        "NORMALISE": normalise,
        "EPS": chunked.EPS,
        "DOT": TRITON_TYPES[p.dot],
        "PRECISION": p.precision,
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "maxnreg": launch.registers,
    }


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
    linked = after.new_empty(rows, segments, p.value, p.key)
    run(None, local, p.key + p.value, local=True)
    forward_kernels.links[(p.value // 16, rows)](
        local, boundary, linked, segments, *shape, BK=p.key, BV=p.value, PART=16, BOUNDED=boundary is not None,
        PRECISION=p.precision, num_warps=4, num_stages=1,
    )  # fmt: skip
    run(linked, after, p.value, linked=True)


@torch.library.custom_op("kernels::delta_rule", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, documents: Tensor | None,
    initial_state: Tensor | None, scale: float, normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output and final state, and for the backward pass: inverse, transition, kept, sums, before, sound."""
    p, results = plan(q, k, v, log_decay), _empty(q, k, v, log_decay)
    out, after, inverse, transition, kept, sums, before, sound = results
    q, k, v, beta = adjacent(q), adjacent(k), adjacent(v), beta.contiguous()
    log_decay = None if log_decay is None else log_decay.contiguous()
    documents = None if documents is None else documents.contiguous()
    boundary = None if initial_state is None else initial_state.contiguous()
    (batch, length, heads, key), value = q.shape, v.shape[-1]
    chunks = sound.shape[1]
    addition = torch.empty_like(before)
    grid, sizes = (batch * chunks * heads,), (length, heads, chunks, key, value)
    part = p.sizes.transitions.part
    forward_kernels.transitions[grid](
        k, v, beta, log_decay, documents, inverse, transition, addition, kept, sums, sound,
        *_strides(k), *_strides(v), *sizes,
        PART_V=min(part, p.value),
        **(_common(p, p.sizes.transitions, q, v, log_decay, documents, normalise) | {"PART": min(part, p.key)}),
    )  # fmt: skip
    gates = None if log_decay is None and documents is None else kept
    _scan(p, transition, addition, gates, boundary, before, after, backward=False)
    forward_kernels.outputs[grid](
        q, k, v, beta, sums, documents, inverse, before, sound, out, scale, *_strides(q), *_strides(k), *_strides(v),
        *sizes, **_common(p, p.sizes.outputs, q, v, log_decay, documents, normalise),
    )  # fmt: skip
    return results


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, documents: Tensor | None,
    initial_state: Tensor | None, scale: float, normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty(q, k, v, log_decay)


def _empty(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    p = plan(q, k, v, log_decay)
    batch, length, heads, key = q.shape
    rows, chunks, value = batch * heads, -(-length // p.sizes.chunk), v.shape[-1]
    return (
        v.new_empty(batch, length, heads, value),
        v.new_empty(batch, heads, key, value, dtype=torch.float32),
        v.new_empty(rows, chunks, p.sizes.chunk, p.sizes.chunk, dtype=p.dot),
        v.new_empty(rows, chunks, p.key, p.key, dtype=p.dot),
        v.new_empty(rows, chunks, dtype=torch.float32),
        v.new_empty(0 if log_decay is None else rows, chunks, 2, p.sizes.chunk, dtype=torch.float32),
        v.new_empty(rows, chunks, p.value, p.key, dtype=p.dot),
        v.new_empty(rows, chunks, dtype=torch.int32),
    )


@torch.library.custom_op("kernels::delta_rule_backward", mutates_args=())
def _backward(
    out_grad: Tensor | None, after_grad: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor,
    log_decay: Tensor | None, documents: Tensor | None, initial_state: Tensor | None, inverse: Tensor,
    transition: Tensor, kept: Tensor, sums: Tensor, before: Tensor, sound: Tensor, scale: float, normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, beta, log_decay (empty without one) and initial_state."""
    p, results = plan(q, k, v, log_decay), _empty_gradients(q, k, v, beta, log_decay)
    q_grad, k_grad, v_grad, beta_grad, log_decay_grad, state_grad = results
    q, k, v, beta = adjacent(q), adjacent(k), adjacent(v), beta.contiguous()
    out_grad = torch.zeros_like(v, memory_format=torch.contiguous_format) if out_grad is None else adjacent(out_grad)
    log_decay = None if log_decay is None else log_decay.contiguous()
    documents = None if documents is None else documents.contiguous()
    boundary = None if after_grad is None else after_grad.contiguous()
    (batch, length, heads, key), value = q.shape, v.shape[-1]
    chunks = sound.shape[1]
    addition, states_grad = torch.empty_like(before), torch.empty_like(before)
    grid, sizes = (batch * chunks * heads,), (length, heads, chunks, key, value)
    qk = (*_strides(q), *_strides(k))
    backward_kernels.adjoint_additions[grid](
        q, k, beta, sums, documents, inverse, sound, out_grad, addition, scale, *qk, *_strides(out_grad), *sizes,
        **_common(p, p.sizes.adjoint, q, v, log_decay, documents, normalise),
    )  # fmt: skip
    gates = None if log_decay is None and documents is None else kept
    _scan(p, transition, addition, gates, boundary, states_grad, state_grad, backward=True)
    backward_kernels.gradients[grid](
        q, k, v, beta, sums, documents, inverse, before, sound, out_grad, states_grad,
        q_grad, k_grad, v_grad, beta_grad, log_decay_grad, scale, *qk, *_strides(v), *_strides(out_grad), *sizes,
        FLIP=p.sizes.gradients.flip,
        **_common(p, p.sizes.gradients, q, v, log_decay, documents, normalise),
    )  # fmt: skip
    return results


@_backward.register_fake
def _(
    out_grad: Tensor | None, after_grad: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor,
    log_decay: Tensor | None, documents: Tensor | None, initial_state: Tensor | None, inverse: Tensor,
    transition: Tensor, kept: Tensor, sums: Tensor, before: Tensor, sound: Tensor, scale: float, normalise: bool,
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
    return *found, None, of_state, *[None] * 8


_forward.register_autograd(_differentiate, setup_context=_remember)
_backward.register_autograd(_differentiate_twice, setup_context=_remember_backward)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, documents: Tensor | None,
    initial_state: Tensor | None, *, scale: float, normalise: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `kernels.delta_rule.delta_rule`, for operands that it sends here; not log_decay and documents."""
    out, state, *_ = _forward(q, k, v, beta, log_decay, documents, initial_state, scale, normalise)
    return out, state
