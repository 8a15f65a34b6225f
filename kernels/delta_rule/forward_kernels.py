"""Triton kernels of the delta rule's forward pass: transitions of all chunks, states, outputs (README.md)."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.delta_rule.tiles import (
    COUNTS,
    LARGEST,
    apart,
    at_row,
    between_tokens,
    bounded,
    cumulative,
    first_row,
    load_documents,
    load_inverse,
    load_kept,
    load_keys,
    load_log_decay,
    load_rows,
    load_tile,
    locate,
    one_document,
    place_of,
    store_inverse,
    store_rows,
    store_sums,
    store_tile,
    two_dot,
    two_terms,
    unit_lower_inverse,
)

# fmt: off

@triton.jit
def _transitions(
    k, v, beta, log_decay, documents, inverse, transition, addition, kept, sums, sound,
    k_batch, k_token, k_head, v_batch, v_token, v_head, LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, PART_V: tl.constexpr,
    EVEN_K: tl.constexpr, EVEN_V: tl.constexpr, GATED: tl.constexpr, APART: tl.constexpr, NORMALISE: tl.constexpr,
    EPS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):
    """Of each chunk: (I + A)⁻¹, WᵀK̃ and U₀ᵀK̃ of the transposed state's step, e^{G_C}, G, the number of sound rows."""
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
    if GATED and not APART:
        log_decays = load_log_decay(log_decay + gates, HEADS, limit, C)
        check += log_decays
    limit = tl.minimum(limit, first_row(check * 0.0 != 0.0, C))
    alive = rows < limit
    strength = tl.where(alive, strength, 0.0)
    if NORMALISE:
        raw = raw * (1.0 / tl.sqrt(squares + EPS))[:, None]
    key = tl.where(alive[:, None], raw, 0.0).to(DOT)

    a = tl.dot(key, tl.trans(key), input_precision=PRECISION) * strength[:, None]
    if APART:
        before, own, end = load_documents(documents, batch, start, LENGTH, C)
        between, from_start, to_end, whole = apart(before, own, end, C)
        a = a * between
        tl.store(kept + at, whole)
    elif GATED:
        high, low = cumulative(tl.where(alive, log_decays, 0.0))
        a = a * between_tokens(high[:, None], low[:, None], high[None, :], low[None, :], DOT)
        whole = at_row(high, C - 1, C)
        left = whole - high
        if tl.float32 == DOT:
            left += at_row(low, C - 1, C) - low
        from_start, to_end = tl.exp2(high), tl.exp2(left)
        tl.store(kept + at, tl.exp2(whole))
    x = unit_lower_inverse(bounded(tl.where(rows[:, None] > rows[None, :], a, 0.0)), C, PRECISION)
    limit = tl.minimum(limit, first_row(tl.max(tl.abs(x), 1) >= LARGEST, C))
    x = tl.where(rows[:, None] < limit, x, 0.0)
    store_inverse(place_of(inverse, at, 0, C, DOT), x, C, DOT)

    written, written_rest = two_terms(x * strength[None, :], DOT)
    erased, erased_rest = written, written_rest
    if GATED:
        erased, erased_rest = two_terms(x * (strength * from_start)[None, :], DOT)
    for first in tl.static_range(0, BK, PART):
        part = key
        if PART < BK:
            part = load_tile(k, k_token, limit, first, KEY, C, PART, EVEN_K)
            if NORMALISE:
                part = part.to(tl.float32) * (1.0 / tl.sqrt(squares + EPS))[:, None]
            part = part.to(DOT)
        w = two_dot(erased, erased_rest, part, False, DOT, PRECISION)
        if GATED:
            w = w * to_end[:, None]
        step = tl.dot(tl.trans(w.to(DOT)), key, input_precision=PRECISION)
        store_rows(transition + (at * BK + first) * BK, step, PART, BK)
    sound_rows = limit
    for first in tl.static_range(0, BV, PART_V):
        value = load_tile(v, v_token, limit, first, VALUE, C, PART_V, EVEN_V).to(tl.float32)
        damaged = tl.sum(value * value, 1) * 0.0 != 0.0
        sound_rows = tl.minimum(sound_rows, first_row(damaged, C))
        value = tl.where(damaged[:, None], 0.0, value).to(DOT)
        u = two_dot(written, written_rest, value, False, DOT, PRECISION)
        if GATED:
            u = u * to_end[:, None]
        step = tl.dot(tl.trans(u.to(DOT)), key, input_precision=PRECISION)
        store_rows(addition + (at * BV + first) * BK, step, PART_V, BK)
    if sound_rows < tl.minimum(LENGTH - start, C):
        # After a token that is not sound, no state is.
        tl.debug_barrier()
        for first in tl.static_range(0, BV, PART_V):
            nothing = tl.full((PART_V, BK), float("nan"), tl.float32)
            store_rows(addition + (at * BV + first) * BK, nothing, PART_V, BK)
    tl.store(sound + at, sound_rows)
    if GATED and not APART:
        store_sums(sums + at * (2 * C), high, low, sound_rows, C, DOT)


@triton.jit(do_not_specialize=COUNTS)
def transitions(
    k, v, beta, log_decay, documents, inverse, transition, addition, kept, sums, sound,
    k_batch, k_token, k_head, v_batch, v_token, v_head, LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, PART_V: tl.constexpr,
    EVEN_K: tl.constexpr, EVEN_V: tl.constexpr, GATED: tl.constexpr, APART: tl.constexpr, NORMALISE: tl.constexpr,
    EPS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):
    """Of each chunk: (I + A)⁻¹, WᵀK̃ and U₀ᵀK̃ of the transposed state's step, e^{G_C}, G, the number of sound rows."""
    if not APART or one_document(documents, LENGTH, HEADS, CHUNKS, C):
        if APART:
            _, chunk, _, row = locate(tl.program_id(0), CHUNKS, HEADS)
            tl.store(kept + row * CHUNKS + chunk, 1.0)
        _transitions(
            k, v, beta, log_decay, documents, inverse, transition, addition, kept, sums, sound, k_batch, k_token,
            k_head, v_batch, v_token, v_head, LENGTH, HEADS, CHUNKS, KEY, VALUE, C, BK, BV, PART, PART_V, EVEN_K,
            EVEN_V, GATED, False, NORMALISE, EPS, DOT, PRECISION,
        )
    else:
        _transitions(
            k, v, beta, log_decay, documents, inverse, transition, addition, kept, sums, sound, k_batch, k_token,
            k_head, v_batch, v_token, v_head, LENGTH, HEADS, CHUNKS, KEY, VALUE, C, BK, BV, PART, PART_V, EVEN_K,
            EVEN_V, True, True, NORMALISE, EPS, DOT, PRECISION,
        )


@triton.jit(do_not_specialize=["CHUNKS", "SEGMENTS", "SPAN"])
def states(
    transition, addition, kept, boundary, before, after, CHUNKS, SEGMENTS, SPAN, KEY, VALUE,
    BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, GATED: tl.constexpr, BOUNDED: tl.constexpr,
    LINKED: tl.constexpr, LOCAL: tl.constexpr, BACKWARD: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):
    """The recurrence S⁺ = e^{G_C} S - K̃ᵀW S + addition, or its adjoint from the last chunk to the first, transposed.

    Writes the state that each chunk starts from (for the adjoint: the gradient of the one it ends with) to `before`
    and the last one to `after`. The first one is zeros, `boundary` if BOUNDED. A program runs over SPAN chunks, one
    segment; LINKED: it starts from what `links` wrote to `boundary`. LOCAL: from zeros, and from the identity without
    additions, for `links`; these go to `after`, one below the other.
    """
    first = tl.program_id(0) * PART
    row = (tl.program_id(1) // SEGMENTS).to(tl.int64)
    segment = tl.program_id(1) % SEGMENTS
    value, key = first + tl.arange(0, PART)[:, None], tl.arange(0, BK)[None, :]
    mask = (key < KEY) & (value < VALUE)
    outside = (row * KEY + key) * VALUE + value
    place = row * SEGMENTS + segment
    state = tl.zeros((PART, BK), tl.float32)
    if BOUNDED:
        state += tl.load(boundary + outside, mask=mask, other=0.0).to(tl.float32)
    if LINKED:
        state += load_rows(boundary + (place * BV + first) * BK, PART, BK)
    if LOCAL:
        state += tl.where(key == value - BV, 1.0, 0.0)
    begin = segment * SPAN
    at = row * CHUNKS
    for index in tl.range(begin, tl.minimum(begin + SPAN, CHUNKS), num_stages=STAGES):
        chunk = CHUNKS - 1 - index if BACKWARD else index
        step = load_rows(transition + (at + chunk) * (BK * BK), BK, BK)
        here = ((at + chunk) * BV + first) * BK
        if LOCAL:
            added = tl.load(addition + here + (value - first) * BK + key, mask=value < BV, other=0.0)
        else:
            added = load_rows(addition + here, PART, BK)
            store_rows(before + here, state, PART, BK)
        if BACKWARD:
            step = tl.trans(step)
        change = added.to(tl.float32) - tl.dot(state.to(DOT), step, input_precision=PRECISION)
        if GATED:
            state = state * tl.load(kept + at + chunk)
        state += change
    if LOCAL:
        store_rows(after + (place * (BK + BV) + first) * BK, state, PART, BK)
    elif segment == SEGMENTS - 1:
        tl.store(after + outside, state, mask=mask)


@triton.jit(do_not_specialize=["SEGMENTS"])
def links(
    sums, products, boundary, linked, sums_place, products_place, SEGMENTS, KEY, VALUE,
    BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, SLICE: tl.constexpr, BOUNDED: tl.constexpr,
    BACKWARD: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):
    """The state before each segment, from what segments make of zeros and of the identity; all transposed. BACKWARD:
    the gradient of the state after each, from the last segment to the first. SLICE rows of a product are held at
    once."""
    first = tl.program_id(0) * PART
    row = tl.program_id(1).to(tl.int64)
    value, key = first + tl.arange(0, PART)[:, None], tl.arange(0, BK)[None, :]
    state = tl.zeros((PART, BK), tl.float32)
    if BOUNDED:
        mask = (key < KEY) & (value < VALUE)
        state += tl.load(boundary + (row * KEY + key) * VALUE + value, mask=mask, other=0.0).to(tl.float32)
    rows = tl.arange(0, SLICE)[:, None] * (1 if BACKWARD else BK)
    for index in tl.range(0, SEGMENTS, num_stages=STAGES):
        segment = SEGMENTS - 1 - index if BACKWARD else index
        place = row * SEGMENTS + segment
        begun, product = linked + (place * BV + first) * BK, products + place * products_place
        store_rows(begun, state, PART, BK)
        added = load_rows(sums + place * sums_place + first * BK, PART, BK)
        if SLICE < BK:
            tl.debug_barrier()
        for some in tl.static_range(0, BK, SLICE):
            taken = state
            if SLICE < BK:
                taken = tl.load(begun + tl.arange(0, PART)[:, None] * BK + some + tl.arange(0, SLICE)[None, :])
            columns = some * (1 if BACKWARD else BK) + key * (BK if BACKWARD else 1)
            added = tl.dot(taken, tl.load(product + rows + columns), added, input_precision=PRECISION)
        state = added


@triton.jit
def _outputs(
    q, k, v, beta, sums, documents, inverse, before, sound, out, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, GATED: tl.constexpr, APART: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
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
    x, rest = load_inverse(place_of(inverse, at, 0, C, DOT), C, DOT)
    attention = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    if GATED:
        between, from_start, _, _ = load_kept(sums, documents, at, batch, start, LENGTH, C, DOT, APART)
        attention = attention * between
    attention = tl.where(rows[:, None] >= rows[None, :], attention, 0.0).to(DOT)
    for first in tl.static_range(0, BV, PART):
        state = tl.trans(load_rows(before + (at * BV + first) * BK, PART, BK))
        value = load_tile(v, v_token, limit, first, VALUE, C, PART, EVEN_V).to(tl.float32)
        stored = tl.dot(key, state, input_precision=PRECISION)
        read = tl.dot(query, state, input_precision=PRECISION)
        if GATED:
            stored = stored * from_start[:, None]
            read = read * from_start[:, None]
        error = bounded((value - stored) * strength[:, None])
        limit = tl.minimum(limit, first_row(tl.max(tl.abs(error), 1) >= LARGEST, C))
        u = two_dot(x, rest, error.to(DOT), False, DOT, PRECISION)
        read += tl.dot(attention, u.to(DOT), input_precision=PRECISION)
        read = tl.where(rows[:, None] < limit, read * scale, float("nan"))
        store_tile(out, read, HEADS * VALUE, length, first, VALUE, C, PART, EVEN_V)


@triton.jit(do_not_specialize=COUNTS)
def outputs(
    q, k, v, beta, sums, documents, inverse, before, sound, out, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, GATED: tl.constexpr, APART: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):
    """O = scale (e^G Q S + P U) with U = (I + A)⁻¹ β (V - e^G K S)."""
    if not APART or one_document(documents, LENGTH, HEADS, CHUNKS, C):
        _outputs(
            q, k, v, beta, sums, documents, inverse, before, sound, out, scale, q_batch, q_token, q_head, k_batch,
            k_token, k_head, v_batch, v_token, v_head, LENGTH, HEADS, CHUNKS, KEY, VALUE, C, BK, BV, PART, EVEN_K,
            EVEN_V, GATED, False, NORMALISE, EPS, DOT, PRECISION,
        )
    else:
        _outputs(
            q, k, v, beta, sums, documents, inverse, before, sound, out, scale, q_batch, q_token, q_head, k_batch,
            k_token, k_head, v_batch, v_token, v_head, LENGTH, HEADS, CHUNKS, KEY, VALUE, C, BK, BV, PART, EVEN_K,
            EVEN_V, True, True, NORMALISE, EPS, DOT, PRECISION,
        )
