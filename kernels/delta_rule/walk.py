"""Launches the kernels of the delta rule that walk through sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.delta_rule import walk_kernels
from kernels.delta_rule.plan import Launch, Plan, arguments, strides
from kernels.delta_rule.walk_gradients import walk_gradients


def _walking(p: Plan, launch: Launch, q: Tensor, v: Tensor, boundary: Tensor | None, *, kept: bool) -> dict[str, Any]:
    """Compile-time arguments of kernels that see a whole sequence; their loops have the stages."""
    found = arguments(p, launch, q, v, None, None, normalise=False)
    for name in ("GATED", "APART", "NORMALISE", "EPS"):
        del found[name]
    return found | {"KEPT": kept, "BOUNDED": boundary is not None, "STAGES": found.pop("num_stages")}


def walk(
    p: Plan, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, documents: Tensor | None,
    boundary: Tensor | None, results: tuple[Tensor, ...], scale: float, *, normalise: bool,
) -> None:  # fmt: skip
    """Fills the results of `kernels::delta_rule`."""
    out, after, system, _, kept, sums, before, sound, factors, residual = results
    rows, chunks = sound.shape
    counts = (*strides(q, k, v), *q.shape[1:3], chunks, q.shape[-1], v.shape[-1])
    sizes = p.sizes.walk
    walk_kernels.systems[(rows * chunks,)](
        q, k, v, beta, log_decay, documents, system, factors, kept, sums, sound, scale, *counts,
        **arguments(p, sizes.systems, q, v, log_decay, documents, normalise),
    )  # fmt: skip
    some = log_decay is not None or documents is not None
    walking = _walking(p, sizes.outputs, q, v, boundary, kept=some)
    walk_kernels.walk_outputs[(rows * (p.value // walking["PART"]),)](
        q, k, v, system, factors, kept, sound, boundary, before, residual, out, after, *counts, **walking
    )


def walk_back(
    p: Plan, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, documents: Tensor | None,
    boundary: Tensor | None, out_grad: Tensor, kept_back: tuple[Tensor, ...], results: tuple[Tensor, ...],
    scale: float, *, normalise: bool,
) -> None:  # fmt: skip
    """Fills the results of `kernels::delta_rule_backward`; `kept_back`: those of `kernels::delta_rule` but two."""
    system, _, kept, sums, before, sound, factors, residual = kept_back
    q_grad, k_grad, v_grad, beta_grad, log_decay_grad, state_grad = results
    rows, chunks = sound.shape
    counts = (*strides(q, k, out_grad), *q.shape[1:3], chunks, q.shape[-1], v.shape[-1])
    sizes, states_grad = p.sizes.walk, torch.empty_like(before)
    some = log_decay is not None or documents is not None
    walking = _walking(p, sizes.adjoint, q, v, boundary, kept=some)
    walk_kernels.walk_adjoint[(rows * (p.value // walking["PART"]),)](
        q, k, system, factors, kept, boundary, out_grad, states_grad, v_grad, state_grad, *counts, **walking
    )
    walk_gradients[(rows * chunks,)](
        q, k, beta, factors, sums, documents, sound, before, states_grad, residual, out_grad, v_grad,
        q_grad, k_grad, beta_grad, log_decay_grad, scale, *counts,
        **arguments(p, sizes.gradients, q, v, log_decay, documents, normalise)
        | {"PART": min(max(sizes.gradients.part, p.key // 2), p.key)},
    )  # fmt: skip
