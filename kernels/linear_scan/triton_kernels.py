"""Kernels of the linear recurrence: a thread walks along the tokens of its channels. README.md describes them."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, assignment, var-annotated"
# ruff: noqa: RUF005 (Triton knows no starred tuples)

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]


@triton.jit
def _place(length, dim, segments, tokens, BD: tl.constexpr):
    """This program's sequence and segment, the tokens of the segment, and the channels. Programs that run at the same
    time share tokens, so that together they read whole rows."""
    parts = tl.cdiv(dim, BD)
    d = tl.program_id(0) % parts * BD + tl.arange(0, BD)
    segment = tl.program_id(0) // parts % segments
    batch = tl.program_id(0) // parts // segments
    return batch.to(tl.int64), segment, segment * tokens, tl.minimum(segment * tokens + tokens, length), d


@triton.jit
def _rows(ptr, first, stride, d, last, inside, BLOCK: tl.constexpr):
    """BLOCK tokens as they are stored, 0 from `last` on and before the sequence."""
    rows = ()
    for u in tl.static_range(BLOCK):
        t = first + u
        rows = rows + (tl.load(ptr + t * stride + d, mask=inside & (t >= 0) & (t < last), other=0.0),)
    return rows


@triton.jit
def _decay(g, CONSTANT: tl.constexpr):
    """exp(g); g itself if CONSTANT, which is that already: there the error of exp2 would come back at each token."""
    decay = g if CONSTANT else tl.exp2(g.to(tl.float32) * 1.4426950408889634)
    return decay


@triton.jit
def _before(ends_ptr, totals_ptr, batch, segment, d, dim, inside, segments, BD: tl.constexpr):
    """The state that the segments before `segment` leave."""
    state = tl.zeros([BD], tl.float32)
    for other in range(segment):
        place = (batch * segments + other) * dim + d
        total = tl.load(totals_ptr + place, mask=inside, other=0.0)
        state = total * state + tl.load(ends_ptr + place, mask=inside, other=0.0)
    return state


@triton.jit
def _after(ends_ptr, totals_ptr, batch, segment, d, dim, inside, segments, BD: tl.constexpr):
    """The gradient that the segments after `segment` pass back."""
    passed = tl.zeros([BD], tl.float32)
    for i in range(segments - 1 - segment):
        place = (batch * segments + segments - 1 - i) * dim + d
        total = tl.load(totals_ptr + place, mask=inside, other=0.0)
        passed = total * passed + tl.load(ends_ptr + place, mask=inside, other=0.0)
    return passed


@triton.jit
def ends_kernel(
    x_ptr, g_ptr, ends_ptr, totals_ptr, length, dim, x_batch, x_token, g_batch, g_token,
    segments, tokens, BLOCK: tl.constexpr, BD: tl.constexpr, CONSTANT: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Each segment by itself: what it leaves to the next one (REVERSE: passes back to the one before), and the product
    of its decays."""
    batch, segment, first, last, d = _place(length, dim, segments, tokens, BD)
    inside = d < dim
    x_ptr += batch * x_batch
    g_ptr += batch * g_batch
    state = tl.zeros([BD], tl.float32)
    total = state + 1
    # The last segment (REVERSE: the first) has no next one.
    alone = segment == 0 if REVERSE else segment == segments - 1
    blocks = tl.where(alone, 0, tl.cdiv(last - first, BLOCK))
    step = -BLOCK if REVERSE else BLOCK
    block = first + (blocks - 1) * BLOCK if REVERSE else first
    rows = _rows(x_ptr, block, x_token, d, last, inside, BLOCK)
    logs = _rows(g_ptr, block, g_token, d, last, inside, BLOCK)
    for _ in range(blocks):
        following = _rows(x_ptr, block + step, x_token, d, last, inside, BLOCK)
        following_logs = _rows(g_ptr, block + step, g_token, d, last, inside, BLOCK)
        for i in tl.static_range(BLOCK):
            decay = _decay(logs[BLOCK - 1 - i if REVERSE else i], CONSTANT)
            x = rows[BLOCK - 1 - i if REVERSE else i].to(tl.float32)
            state = (state + x) * decay if REVERSE else state * decay + x
            total *= decay
        rows = following
        logs = following_logs
        block += step
    place = (batch * segments + segment) * dim + d
    tl.store(ends_ptr + place, state, mask=inside)
    tl.store(totals_ptr + place, total, mask=inside)


@triton.jit
def forward_kernel(
    x_ptr, g_ptr, h_ptr, kept_ptr, ends_ptr, totals_ptr, length, dim, x_batch, x_token, g_batch, g_token,
    segments, tokens, BLOCK: tl.constexpr, BD: tl.constexpr, CONSTANT: tl.constexpr,
):  # fmt: skip
    """Writes h, and for the backward pass the state before every BLOCK tokens. BLOCK tokens are read while as many are
    computed."""
    batch, segment, first, last, d = _place(length, dim, segments, tokens, BD)
    inside = d < dim
    x_ptr += batch * x_batch
    g_ptr += batch * g_batch
    h_ptr += batch * length * dim
    kept_ptr += batch * tl.cdiv(length, BLOCK) * dim
    state = _before(ends_ptr, totals_ptr, batch, segment, d, dim, inside, segments, BD)
    rows = _rows(x_ptr, first, x_token, d, last, inside, BLOCK)
    logs = _rows(g_ptr, first, g_token, d, last, inside, BLOCK)
    for block in range(first, last, BLOCK):
        following = _rows(x_ptr, block + BLOCK, x_token, d, last, inside, BLOCK)
        following_logs = _rows(g_ptr, block + BLOCK, g_token, d, last, inside, BLOCK)
        tl.store(kept_ptr + block // BLOCK * dim + d, state, mask=inside)
        for u in tl.static_range(BLOCK):
            state = _decay(logs[u], CONSTANT) * state + rows[u].to(tl.float32)
            mask = inside & (block + u < last)
            tl.store(h_ptr + (block + u) * dim + d, state.to(h_ptr.dtype.element_ty), mask=mask)
        rows = following
        logs = following_logs


@triton.jit
def _states(kept_ptr, rows, logs, inside, BLOCK: tl.constexpr, CONSTANT: tl.constexpr):
    """The decayed states a_t h_{t-1} of a block, from the state before it."""
    state = tl.load(kept_ptr, mask=inside, other=0.0)
    decayed = ()
    for u in tl.static_range(BLOCK):
        state *= _decay(logs[u], CONSTANT)
        decayed = decayed + (state,)
        state += rows[u].to(tl.float32)
    return decayed


@triton.jit
def backward_kernel(
    x_ptr, g_ptr, dh_ptr, kept_ptr, dx_ptr, dg_ptr, ends_ptr, totals_ptr, length, dim,
    x_batch, x_token, g_batch, g_token,
    segments, tokens, BLOCK: tl.constexpr, BD: tl.constexpr, CONSTANT: tl.constexpr,
):  # fmt: skip
    """From the end: dx_t = dh_t + a_{t+1} dx_{t+1}, and the gradient a_t h_{t-1} dx_t of the log-decay, for which a
    block's states are computed again. A CONSTANT one gets one sum a segment, [batch, segments, dim]."""
    batch, segment, first, last, d = _place(length, dim, segments, tokens, BD)
    inside = d < dim
    x_ptr += batch * x_batch
    g_ptr += batch * g_batch
    dh_ptr += batch * length * dim
    dx_ptr += batch * length * dim
    kept_ptr += batch * tl.cdiv(length, BLOCK) * dim + d
    passed = _after(ends_ptr, totals_ptr, batch, segment, d, dim, inside, segments, BD)
    summed = tl.zeros([BD], tl.float32)
    blocks = tl.cdiv(last - first, BLOCK)
    block = first + (blocks - 1) * BLOCK
    rows = _rows(x_ptr, block, x_token, d, last, inside, BLOCK)
    logs = _rows(g_ptr, block, g_token, d, last, inside, BLOCK)
    upstream = _rows(dh_ptr, block, dim, d, last, inside, BLOCK)
    for _ in range(blocks):
        following = _rows(x_ptr, block - BLOCK, x_token, d, last, inside, BLOCK)
        following_logs = _rows(g_ptr, block - BLOCK, g_token, d, last, inside, BLOCK)
        following_upstream = _rows(dh_ptr, block - BLOCK, dim, d, last, inside, BLOCK)
        decayed = _states(kept_ptr + block // BLOCK * dim, rows, logs, inside, BLOCK, CONSTANT)
        for u in tl.static_range(BLOCK - 1, -1, -1):
            mask = inside & (block + u < last)
            dx = upstream[u].to(tl.float32) + passed
            tl.store(dx_ptr + (block + u) * dim + d, dx.to(dx_ptr.dtype.element_ty), mask=mask)
            passed = _decay(logs[u], CONSTANT) * dx
            dg = decayed[u] * dx
            if CONSTANT:
                summed += tl.where(mask, dg, 0.0)
            else:
                to = dg_ptr + (batch * length + block + u) * dim + d
                tl.store(to, dg.to(dg_ptr.dtype.element_ty), mask=mask)
        rows = following
        logs = following_logs
        upstream = following_upstream
        block -= BLOCK
    if CONSTANT:
        tl.store(dg_ptr + (batch * segments + segment) * dim + d, summed, mask=inside)
