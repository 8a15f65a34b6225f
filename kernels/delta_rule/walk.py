"""Launches the kernels of the delta rule that walk through sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.delta_rule import forward_kernels, walk_kernels
from kernels.delta_rule.plan import Launch, Plan, arguments, strides
from kernels.delta_rule.walk_gradients import walk_gradients


def link(
    p: Plan, sums: Tensor, transitions: Tensor, boundary: Tensor | None, shape: Sequence[int], *, backward: bool = False
) -> Tensor:
    """The states that segments begin with, transposed: [rows, segments, value, key], padded.

    Args:
        sums: [rows, segments, value or more, key], what each segment makes of zeros.
        transitions: [rows, segments, value + key, key], below `value` what it makes of the identity.
        boundary: what the first segment begins with, [..., *shape].
        backward: these are gradients, and the last segment is the first.
    """
    rows, segments = sums.shape[:2]
    linked, transitions = sums.new_empty(rows, segments, p.value, p.key), transitions[:, :, p.value :]
    wide = p.key > 128  # then a whole product does not fit into a multiprocessor
    forward_kernels.links[(p.value // 16, rows)](
        sums, transitions, boundary, linked, sums.stride(1), transitions.stride(1), segments, *shape,
        BK=p.key, BV=p.value, PART=16, SLICE=64 if wide else p.key, BOUNDED=boundary is not None, BACKWARD=backward,
        PRECISION=p.precision, STAGES=1 if wide else 2, num_warps=4, num_stages=1,
    )  # fmt: skip
    return linked


def _walking(
    p: Plan, launch: Launch, q: Tensor, v: Tensor, boundary: Tensor | None, *, kept: bool, ends: bool = False
) -> dict[str, Any]:
    """Compile-time arguments of kernels that see a whole sequence or segment; their loops have the stages."""
    found = arguments(p, launch, q, v, None, None, normalise=False)
    for name in ("GATED", "APART", "NORMALISE", "EPS"):
        del found[name]
    cut = p.segments > 1
    if ends:  # keys' columns are walked too
        found["PART"] = min(found["PART"], p.key)
    return found | {
        "KEPT": kept, "BOUNDED": boundary is not None and not cut, "CUT": cut, "ENDS": ends,
        "STAGES": found.pop("num_stages"),
    }  # fmt: skip


def walk(
    p: Plan, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, documents: Tensor | None,
    boundary: Tensor | None, results: tuple[Tensor, ...], scale: float, *, normalise: bool,
) -> None:  # fmt: skip
    """Fills the results of `kernels::delta_rule`."""
    out, after, system, transition, kept, sums, before, sound, factors, residual = results
    rows, chunks = sound.shape
    shape = (q.shape[-1], v.shape[-1])
    sizes, places, some = p.sizes.walk, rows * p.segments, log_decay is not None or documents is not None
    walk_kernels.systems[(rows * chunks,)](
        q, k, v, beta, log_decay, documents, system, factors, kept, sums, sound, scale,
        *strides(q, k, v), *q.shape[1:3], chunks, *shape,
        **arguments(p, sizes.systems, q, v, log_decay, documents, normalise),
    )  # fmt: skip

    def run(launch: Launch, boundary: Tensor | None, after: Tensor, columns: int, *, ends: bool) -> None:
        walking = _walking(p, launch, q, v, boundary, kept=some, ends=ends)
        walk_kernels.walk_outputs[(places * (columns // walking["PART"]),)](
            q, k, v, system, factors, kept, sound, boundary, before, residual, out, after,
            *strides(q, k, v), *q.shape[1:3], chunks, p.segments, p.span, *shape, **walking,
        )  # fmt: skip

    if p.segments > 1:
        run(sizes.ends, None, transition, p.value + p.key, ends=True)
        boundary = link(p, transition, transition, boundary, shape)
    run(sizes.outputs, boundary, after, p.value, ends=False)


def walk_back(
    p: Plan, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, documents: Tensor | None,
    boundary: Tensor | None, out_grad: Tensor, kept_back: tuple[Tensor, ...], results: tuple[Tensor, ...],
    scale: float, *, normalise: bool,
) -> None:  # fmt: skip
    """Fills the results of `kernels::delta_rule_backward`; `kept_back`: those of `kernels::delta_rule` but the
    first two."""
    system, transition, kept, sums, before, sound, factors, residual = kept_back
    q_grad, k_grad, v_grad, beta_grad, log_decay_grad, state_grad = results
    rows, chunks = sound.shape
    shape = (q.shape[-1], v.shape[-1])
    sizes, places, some = p.sizes.walk, rows * p.segments, log_decay is not None or documents is not None
    given, states_grad = strides(q, k, out_grad), torch.empty_like(before)

    def run(boundary: Tensor | None, state_grad: Tensor, *, ends: bool) -> None:
        walking = _walking(p, sizes.adjoint, q, v, boundary, kept=some, ends=ends)
        walk_kernels.walk_adjoint[(places * (p.value // walking["PART"]),)](
            q, k, system, factors, kept, boundary, out_grad, states_grad, v_grad, state_grad,
            *given, *q.shape[1:3], chunks, p.segments, p.span, *shape, **walking,
        )  # fmt: skip

    if p.segments > 1:
        local = transition.new_empty(rows, p.segments, p.value, p.key)
        run(None, local, ends=True)
        boundary = link(p, local, transition, boundary, shape, backward=True)
    run(boundary, state_grad, ends=False)
    walk_gradients[(rows * chunks,)](
        q, k, beta, factors, sums, documents, sound, before, states_grad, residual, out_grad, v_grad,
        q_grad, k_grad, beta_grad, log_decay_grad, scale, *given, *q.shape[1:3], chunks, *shape,
        **arguments(p, sizes.gradients, q, v, log_decay, documents, normalise)
        | {"PART": min(max(sizes.gradients.part, p.key // 2), p.key)},
    )  # fmt: skip
