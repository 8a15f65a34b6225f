"""Triton kernels of the delta rule's forward pass: transitions of all chunks, states, outputs (README.md)."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.delta_rule.tiles import (
    LARGEST,
    bounded,
    decays,
    first_row,
    load_block,
    load_keys,
    load_log_decay,
    load_tile,
    locate,
    store_block,
    store_tile,
    unit_lower_inverse,
)

# fmt: off

@triton.jit
def transitions(
    k, v, beta, log_decay, inverse, transition, addition, kept, sound,
    k_batch, k_token, k_head, v_batch, v_token, v_head, LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, PART_V: tl.constexpr,
    EVEN_K: tl.constexpr, EVEN_V: tl.constexpr, GATED: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, SOLVE: tl.constexpr,
):
    """Of each chunk: (I + A)⁻¹, the K̃ᵀW and K̃ᵀU₀ of the state's step, e^{G_C}, and how many rows are sound."""
    batch, chunk, head, row = locate(tl.program_id(0), CHUNKS, HEADS)
    start = chunk * C
    limit = tl.minimum(LENGTH - start, C)
    at = row * CHUNKS + chunk
    k += batch * k_batch + start * k_token + head * k_head
    v += batch * v_batch + start * v_token + head * v_head
    gates = (batch * LENGTH + start) * HEADS + head
    rows = tl.arange(0, C)

    raw = load_tile(k, k_token, limit, 0, KEY, C, BK, EVEN_K).to(tl.float32)
    strength = tl.load(beta + gates + rows * HEADS, mask=rows < limit, other=0.0).to(tl.float32)
    squares = tl.sum(raw * raw, 1)
    check = squares + strength * strength
    if GATED:
        log_decays = load_log_decay(log_decay + gates, HEADS, limit, C)
        check += log_decays
    limit = tl.minimum(limit, first_row(check * 0.0 != 0.0, C))
    alive = rows < limit
    strength = tl.where(alive, strength, 0.0)
    if NORMALISE:
        raw = raw * (1.0 / tl.sqrt(squares + EPS))[:, None]
    key = tl.where(alive[:, None], raw, 0.0).to(DOT)

    a = tl.dot(key, tl.trans(key), input_precision=PRECISION) * strength[:, None]
    if GATED:
        between, from_start, to_end, whole = decays(tl.where(alive, log_decays, 0.0), C)
        a = a * between
        tl.store(kept + at, whole)
    x = unit_lower_inverse(bounded(tl.where(rows[:, None] > rows[None, :], a, 0.0)), C, SOLVE)
    limit = tl.minimum(limit, first_row(tl.max(tl.abs(x), 1) >= LARGEST, C))
    x = tl.where(rows[:, None] < limit, x, 0.0)
    store_block(inverse + at * (C * C), x, 0, C, C, C)

    written = (x * strength[None, :]).to(DOT)
    erased = (x * (strength * from_start)[None, :]).to(DOT) if GATED else written
    for first in tl.static_range(0, BK, PART):
        part = key
        if PART < BK:
            part = load_tile(k, k_token, limit, first, KEY, C, PART, EVEN_K)
            if NORMALISE:
                part = part.to(tl.float32) * (1.0 / tl.sqrt(squares + EPS))[:, None]
            part = part.to(DOT)
        w = tl.dot(erased, part, input_precision=PRECISION)
        if GATED:
            w = w * to_end[:, None]
        step = tl.dot(tl.trans(key), w.to(DOT), input_precision=PRECISION)
        store_block(transition + at * (BK * BK), step, first, BK, BK, PART)
    sound_rows = limit
    for first in tl.static_range(0, BV, PART_V):
        value = load_tile(v, v_token, limit, first, VALUE, C, PART_V, EVEN_V).to(tl.float32)
        damaged = tl.sum(value * value, 1) * 0.0 != 0.0
        sound_rows = tl.minimum(sound_rows, first_row(damaged, C))
        value = tl.where(damaged[:, None], 0.0, value).to(DOT)
        u = tl.dot(written, value, input_precision=PRECISION)
        if GATED:
            u = u * to_end[:, None]
        step = tl.dot(tl.trans(key), u.to(DOT), input_precision=PRECISION)
        store_block(addition + at * (BK * BV), step, first, BK, BV, PART_V)
    tl.store(sound + at, tl.where(sound_rows < tl.minimum(LENGTH - start, C), sound_rows, C))


@triton.jit
def states(
    transition, addition, kept, sound, boundary, before, after, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, GATED: tl.constexpr,
    BOUNDED: tl.constexpr, BACKWARD: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):
    """The recurrence S⁺ = e^{G_C} S - K̃ᵀW S + addition, or its adjoint from the last chunk to the first.

    Writes the state that each chunk starts from (for the adjoint: the gradient of the one it ends with) to `before`
    and the last one to `after`. `boundary` is the first one, zeros unless BOUNDED.
    """
    first = tl.program_id(0) * PART
    row = tl.program_id(1).to(tl.int64)
    rows, columns = tl.arange(0, BK)[:, None], first + tl.arange(0, PART)[None, :]
    mask = (rows < KEY) & (columns < VALUE)
    outside = row * KEY * VALUE + rows * VALUE + columns
    state = tl.zeros((BK, PART), tl.float32)
    if BOUNDED:
        state += tl.load(boundary + outside, mask=mask, other=0.0).to(tl.float32)
    at = row * CHUNKS
    for index in tl.range(0, CHUNKS, num_stages=STAGES):
        chunk = CHUNKS - 1 - index if BACKWARD else index
        store_block(before + (at + chunk) * (BK * BV), state, first, BK, BV, PART)
        step = load_block(transition + (at + chunk) * (BK * BK), 0, BK, BK, BK)
        added = load_block(addition + (at + chunk) * (BK * BV), first, BK, BV, PART).to(tl.float32)
        if BACKWARD:
            step = tl.trans(step)
        change = added - tl.dot(step, state.to(DOT), input_precision=PRECISION)
        if GATED:
            state = state * tl.load(kept + at + chunk)
        state += change
        if not BACKWARD:
            # After a token that is not sound, nothing is.
            state = tl.where(tl.load(sound + at + chunk) < C, float("nan"), state)
    tl.store(after + outside, state, mask=mask)


@triton.jit
def outputs(
    q, k, v, beta, log_decay, inverse, before, sound, out, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, GATED: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """O = scale (e^G Q S + P U) with U = (I + A)⁻¹ β (V - e^G K S)."""
    batch, chunk, head, row = locate(tl.program_id(0), CHUNKS, HEADS)
    start = chunk * C
    length = tl.minimum(LENGTH - start, C)
    at = row * CHUNKS + chunk
    limit = tl.minimum(length, tl.load(sound + at))
    q += batch * q_batch + start * q_token + head * q_head
    k += batch * k_batch + start * k_token + head * k_head
    v += batch * v_batch + start * v_token + head * v_head
    out += ((batch * LENGTH + start) * HEADS + head) * VALUE
    gates = (batch * LENGTH + start) * HEADS + head
    rows = tl.arange(0, C)

    query = load_keys(q, q_token, limit, KEY, C, BK, EVEN_K, NORMALISE, EPS, DOT)
    key = load_keys(k, k_token, limit, KEY, C, BK, EVEN_K, NORMALISE, EPS, DOT)
    strength = tl.load(beta + gates + rows * HEADS, mask=rows < limit, other=0.0).to(tl.float32)
    x = load_block(inverse + at * (C * C), 0, C, C, C)
    attention = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    if GATED:
        between, from_start, _, _ = decays(load_log_decay(log_decay + gates, HEADS, limit, C), C)
        attention = attention * between
    attention = tl.where(rows[:, None] >= rows[None, :], attention, 0.0).to(DOT)
    for first in tl.static_range(0, BV, PART):
        state = load_block(before + at * (BK * BV), first, BK, BV, PART)
        value = load_tile(v, v_token, limit, first, VALUE, C, PART, EVEN_V).to(tl.float32)
        stored = tl.dot(key, state, input_precision=PRECISION)
        read = tl.dot(query, state, input_precision=PRECISION)
        if GATED:
            stored = stored * from_start[:, None]
            read = read * from_start[:, None]
        error = bounded((value - stored) * strength[:, None])
        limit = tl.minimum(limit, first_row(tl.max(tl.abs(error), 1) >= LARGEST, C))
        u = tl.dot(x, error.to(DOT), input_precision=PRECISION)
        read += tl.dot(attention, u.to(DOT), input_precision=PRECISION)
        read = tl.where(rows[:, None] < limit, read * scale, float("nan"))
        store_tile(out, read, HEADS * VALUE, length, first, VALUE, C, PART, EVEN_V)
