"""Launches the kernels of linear attention that walk through sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear_attention import fused_kernels
from kernels.linear_attention.plan import Plan, arguments, device_of, strides

_AT_ONCE = 16  # chunks whose decays one program sums
_WARP_GROUP = 4  # warps, of which products take their operands from shared memory, transposed or not


def _decay_sums(chunk: int, log_decay: Tensor | None, sound: Tensor, *, stopped: bool) -> Tensor | None:
    """Of each chunk, in two numbers; if `stopped`, of sound tokens."""
    if log_decay is None:
        return None
    length, heads = log_decay.shape[1:]
    sums = log_decay.new_empty(len(sound), -(-length // chunk), 2, chunk, dtype=torch.float32)
    fused_kernels.decay_sums[(len(sound) * -(-sums.shape[1] // _AT_ONCE),)](
        log_decay, sound, sums, length, heads, C=chunk, CHUNKS=_AT_ONCE, STOPPED=stopped
    )
    return sums


def walk(
    p: Plan, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, boundary: Tensor | None, out: Tensor,
    after: Tensor, sound: Tensor, scale: float,
) -> None:  # fmt: skip
    form, columns = p.sizes.fused, min(p.sizes.fused.columns or p.value, p.value)
    with device_of(q):
        sums = _decay_sums(form.chunk, log_decay, sound, stopped=False)
        fused_kernels.fused_outputs[(len(sound) * (p.value // columns),)](
            q, k, v, log_decay, sums, boundary, out, after, sound, scale, *strides(q, k, v), *q.shape[1:], v.shape[-1],
            **arguments(p, form.chunk, q, v, log_decay), PV=columns, BOUNDED=boundary is not None, STAGES=form.stages,
            num_warps=form.warps,
        )  # fmt: skip


def walk_back(
    p: Plan, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, boundary: Tensor | None,
    after_grad: Tensor | None, sound: Tensor, out_grad: Tensor, q_grad: Tensor, k_grad: Tensor, v_grad: Tensor,
    decay_grad: Tensor, state_grad: Tensor, scale: float,
) -> None:  # fmt: skip
    """At once, but where log-decays have gradients: those need what the walk forward leaves at each chunk."""
    form = p.sizes.fused
    key, value = (min(form.gradient_columns or width, width) for width in (p.key, p.value))
    parts, value_parts = p.key // key, p.value // value
    rows, length = len(sound), q.shape[1]
    steps = [(2 * parts + value_parts, {"QUERIES": True, "KEYS": True})]
    states, read, written, inside, across = (None,) * 5
    if log_decay is not None:
        chunks = -(-length // form.gradient_chunk)
        states = q.new_empty(rows, chunks, p.value, p.key, dtype=p.dot)
        read, written, inside = (q.new_empty(parts, rows, length, dtype=torch.float32) for _ in range(3))
        across = q.new_empty(parts, rows, chunks, dtype=torch.float32)
        steps = [(parts, {"QUERIES": True, "KEYS": False}), (parts + value_parts, {"QUERIES": False, "KEYS": True})]
    with device_of(q):
        sums = _decay_sums(form.gradient_chunk, log_decay, sound, stopped=True)
        for programs, roles in steps:
            fused_kernels.fused_gradients[(rows * programs,)](
                q, k, v, sums, boundary, after_grad, sound, out_grad, q_grad, k_grad, v_grad, state_grad,
                states, read, written, inside, across, scale, *strides(q, k, v, out_grad), *q.shape[1:], v.shape[-1],
                rows, **arguments(p, form.gradient_chunk, q, v, log_decay), PK=key, PV=value,
                BOUNDED=boundary is not None, BOUNDED_AFTER=after_grad is not None,
                TWICE=form.gradient_warps < _WARP_GROUP, **roles,
                STAGES=form.gradient_stages, num_warps=form.gradient_warps, maxnreg=form.gradient_registers,
            )  # fmt: skip
        if log_decay is not None:
            fused_kernels.decay_gradients[(rows * -(-chunks // _AT_ONCE),)](
                read, written, inside, across, decay_grad, length, q.shape[2], rows,
                C=form.gradient_chunk, CHUNKS=_AT_ONCE, PARTS=parts,
            )  # fmt: skip
