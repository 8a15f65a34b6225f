"""Triton kernels of the delta rule that walk through a sequence with the state in registers (README.md)."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.delta_rule.tiles import (
    COUNTS,
    FACTORS,
    LARGEST,
    WALKED,
    apart,
    at_row,
    between_tokens,
    bounded,
    cumulative,
    first_row,
    inverse_root,
    load_documents,
    load_inverse,
    load_log_decay,
    load_rows,
    load_tile,
    load_turned,
    locate,
    one_document,
    place_of,
    store_inverse,
    store_rows,
    store_tile,
    two_dot,
    two_terms,
    unit_lower_inverse,
)

# fmt: off

@triton.jit
def _squares(product, C: tl.constexpr):
    """The diagonal of a tile's product with itself: fewer shuffles than sums along the rows of a tile as it is read."""
    rows = tl.arange(0, C)
    return tl.sum(tl.where(rows[:, None] == rows[None, :], product, 0.0), 1)


@triton.jit
def _inverse_length(squares, EPS: tl.constexpr, NORMALISE: tl.constexpr):
    """What makes a row's length one, if that is asked for."""
    length = tl.full(squares.shape, 1.0, tl.float32)
    if NORMALISE:
        length = inverse_root(squares, EPS)
    return length


@triton.jit(do_not_specialize=COUNTS)
def systems(
    q, k, v, beta, log_decay, documents, system, factors, kept, sums, sound, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, GATED: tl.constexpr, APART: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):
    """Of each chunk all that needs no state: (I + L B)⁻¹, scale P B, the factors of tokens, e^{G_C}, G, sound rows.

    Keys and queries are never made of unit length: their lengths are in what is written here.
    """
    batch, chunk, head, row = locate(tl.program_id(0), CHUNKS, HEADS)
    start = chunk * C
    length = tl.minimum(LENGTH - start, C)
    at = row * CHUNKS + chunk
    q += batch * q_batch + start * q_token + head * q_head
    k += batch * k_batch + start * k_token + head * k_head
    v += batch * v_batch + start * v_token + head * v_head
    gates = (batch * LENGTH + start) * HEADS + head
    rows = tl.arange(0, C)

    if APART:  # read early, used late
        before, own, end = load_documents(documents, batch, start, LENGTH, C)
        whole_chunk = one_document(documents, LENGTH, HEADS, CHUNKS, C)
    key = load_tile(k, k_token, length, 0, KEY, C, BK, EVEN_K).to(DOT)
    turned = tl.trans(key)
    a = tl.dot(key, turned, input_precision=PRECISION)
    squares = _squares(a, C)
    strength = tl.load(beta + gates + rows * HEADS, mask=rows < length, other=0.0).to(tl.float32)
    check = squares + strength * strength
    if GATED:
        log_decays = load_log_decay(log_decay + gates, HEADS, length, C)
        check += log_decays
    for first in tl.static_range(0, BV, PART):
        value = load_tile(v, v_token, length, first, VALUE, C, PART, EVEN_V).to(tl.float32)
        check += tl.sum(value * value, 1)
    limit = tl.minimum(length, first_row(check * 0.0 != 0.0, C))
    alive = rows < limit
    strength = tl.where(alive, strength, 0.0)
    key_length = tl.where(alive, _inverse_length(squares, EPS, NORMALISE), 0.0)
    query = load_tile(q, q_token, limit, 0, KEY, C, BK, EVEN_K).to(DOT)
    wide = query.to(tl.float32)
    query_length = _inverse_length(tl.sum(wide * wide, 1), EPS, NORMALISE)

    factors += at * (FACTORS * C) + rows
    tl.store(factors + 3 * C, key_length)
    tl.store(factors + 4 * C, query_length)

    written = (key_length * strength)[None, :]
    s = tl.dot(query, turned, input_precision=PRECISION) * ((query_length * scale)[:, None] * written)
    reads, writes = key_length, key_length * strength
    asks = tl.where(alive, query_length * scale, 0.0)
    if APART:
        between, from_start, to_end, _ = apart(before, own, end, C)
        tl.store(kept + at, tl.where(whole_chunk, 1.0, 0.0))
    elif GATED:
        high, low = cumulative(tl.where(alive, log_decays, 0.0))
        between = between_tokens(high[:, None], low[:, None], high[None, :], low[None, :], DOT)
        whole = tl.min(high, 0)  # sums never rise
        left = whole - high
        if tl.float32 == DOT:
            left += at_row(low, C - 1, C) - low
        sums += at * (2 * C) + rows  # stored at once, so that they take no registers until the system is solved
        tl.store(sums, high)
        if tl.float32 == DOT:
            tl.store(sums + C, low)
        from_start, to_end = tl.exp2(high), tl.exp2(left)
        tl.store(kept + at, tl.exp2(whole))
    a = a * (key_length[:, None] * written)
    if GATED or APART:
        a = a * between
        s = s * between
        reads, writes, asks = reads * from_start, writes * to_end, asks * from_start
    # Here, because then only one matrix is kept while the system is solved.
    tiles = place_of(system, at, 1, C, DOT)
    store_rows(tiles, tl.where((rows[:, None] >= rows[None, :]) & alive[:, None], s, 0.0), C, C)
    x = unit_lower_inverse(bounded(tl.where((rows[:, None] > rows[None, :]) & alive[:, None], a, 0.0)), C, PRECISION)
    limit = tl.minimum(limit, first_row(tl.max(tl.abs(x), 1) >= LARGEST, C))
    alive = rows < limit
    store_inverse(tiles + C * C, tl.where(alive[:, None], x, 0.0), C, DOT)
    tl.store(factors, tl.where(alive, reads, 0.0))
    tl.store(factors + C, tl.where(alive, writes, 0.0))
    tl.store(factors + 2 * C, tl.where(alive, asks, 0.0))
    tl.store(sound + at, limit)


@triton.jit
def _load_factors(factors, at, C: tl.constexpr):
    """Of what a token's key reads, of what it writes, of what its query reads; each [C]."""
    factors += at * (FACTORS * C) + tl.arange(0, C)
    return tl.load(factors), tl.load(factors + C), tl.load(factors + 2 * C)


@triton.jit
def _boundary(boundary, row, first, KEY, VALUE, BK: tl.constexpr, PART: tl.constexpr):
    """Places in a state [KEY, VALUE], from value column `first` on, and which of them there are."""
    key, value = tl.arange(0, BK)[:, None], first + tl.arange(0, PART)[None, :]
    return boundary + (row * KEY + key) * VALUE + value, (key < KEY) & (value < VALUE)


@triton.jit
def _segment(place, SEGMENTS, SPAN, CHUNKS):
    """Of a place among all rows' segments: its row, the first of its chunks and what follows the last one."""
    begin = (place % SEGMENTS).to(tl.int32) * SPAN
    return place // SEGMENTS, begin, tl.minimum(begin + SPAN, CHUNKS)


@triton.jit
def _walk_outputs(
    q, k, v, system, factors, kept, sound, boundary, before, residual, out, after, row, first,
    place, begin, end, q_token, k_token, v_token, LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, KEPT: tl.constexpr, BOUNDED: tl.constexpr, CUT: tl.constexpr, ENDS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, CAREFUL: tl.constexpr,
):
    """What `walk_outputs` writes; if not CAREFUL, as if nothing overflowed and all tokens were sound, and whether that
    is so."""
    tokens = tl.arange(0, C)[:, None]
    sizes, spare = tl.zeros((C,), tl.float32), LENGTH
    state = tl.zeros((BK, PART), tl.float32)
    if ENDS:
        state += tl.where(tl.arange(0, BK)[:, None] == first - BV + tl.arange(0, PART)[None, :], 1.0, 0.0)
    elif CUT:
        state += tl.trans(load_rows(boundary + (place * BV + first) * BK, PART, BK))
    elif BOUNDED:
        states, mask = _boundary(boundary, row, first, KEY, VALUE, BK, PART)
        state += tl.load(states, mask=mask, other=0.0).to(tl.float32)
    for chunk in tl.range(begin, end, num_stages=STAGES):
        at = row * CHUNKS + chunk
        start = tl.cast(chunk * C, tl.int64)
        length = tl.minimum(LENGTH - chunk * C, C)
        key = load_tile(k + start * k_token, k_token, length, 0, KEY, C, BK, EVEN_K).to(DOT)
        if not ENDS:
            query = load_tile(q + start * q_token, q_token, length, 0, KEY, C, BK, EVEN_K).to(DOT)
        tiles = place_of(system, at, 1, C, DOT)
        if not ENDS:
            weights = load_rows(tiles, C, C)
        x, rest = load_inverse(tiles + C * C, C, DOT)
        reads, writes, asks = _load_factors(factors, at, C)
        limit = tl.load(sound + at)
        if KEPT:
            keep = tl.load(kept + at)
        there = length
        if ENDS:
            there = tl.where(first < BV, length, 0)
        value = load_tile(v + start * v_token, v_token, there, first, VALUE, C, PART, EVEN_V)
        turned = tl.trans(key)
        if C < 64:  # products' operands are in registers then, and nothing in two layouts there is loaded ahead
            turned = load_turned(k + start * k_token, k_token, length, 0, KEY, C, BK, EVEN_K).to(DOT)

        held = state.to(DOT)
        if not ENDS:
            store_rows(before + (at * BV + first) * BK, tl.trans(held), PART, BK)
        if KEPT:
            state = state * keep
        # Both products with the state at once: its place in shared memory is free afterwards.
        error = tl.dot(key, held, input_precision=PRECISION)
        if not ENDS:
            read = tl.dot(query, held, input_precision=PRECISION) * asks[:, None]
        error = value.to(tl.float32) - error * reads[:, None]
        if CAREFUL:
            # What overflows or is not finite spoils its own column alone, from its token on.
            until = tl.minimum(limit, tl.min(tl.where(tl.abs(error) < LARGEST, C, tokens), 0))[None, :]
            error = bounded(error)
        else:
            sizes += tl.sum(tl.abs(error), 1)  # no error is larger than that, and nan stays
        result = two_dot(x, rest, error.to(DOT), False, DOT, PRECISION)
        factor = result.to(DOT)
        if not ENDS:
            store_rows(residual + (at * BV + first) * C, tl.trans(factor), PART, C)
            read = tl.dot(weights, factor, read, input_precision=PRECISION)
            if CAREFUL:
                read = tl.where(tokens < until, read, float("nan"))
            store_tile(out + start * HEADS * VALUE, read, HEADS * VALUE, length, first, VALUE, C, PART, EVEN_V)
        if CAREFUL:
            # After a token that is not sound, no state is.
            state += tl.where(until < length, float("nan"), 0.0)
        state = tl.dot(turned, (result * writes[:, None]).to(DOT), state, input_precision=PRECISION)
        if not CAREFUL:
            spare = tl.minimum(spare, limit - length)
    if ENDS:
        store_rows(after + (place * (BV + BK) + first) * BK, tl.trans(state), PART, BK)
    elif end == CHUNKS:
        final, inside = _boundary(after, row, first, KEY, VALUE, BK, PART)
        tl.store(final, state, mask=inside)
    return (tl.sum(sizes, 0) < LARGEST) & (spare >= 0)


@triton.jit(do_not_specialize=WALKED)
def walk_outputs(
    q, k, v, system, factors, kept, sound, boundary, before, residual, out, after,
    q_batch, q_token: tl.constexpr, q_head, k_batch, k_token: tl.constexpr, k_head,
    v_batch, v_token: tl.constexpr, v_head,
    LENGTH, HEADS: tl.constexpr, CHUNKS, SEGMENTS, SPAN, KEY: tl.constexpr, VALUE: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, KEPT: tl.constexpr, BOUNDED: tl.constexpr, CUT: tl.constexpr, ENDS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):
    """R = (I + L B)⁻¹ (V - e^G K S), O = scale (e^G Q S + P B R), S⁺ = e^{G_C} S + K̃ᵀ B R, of PART value columns.

    What is wrong after all is written a second time. CUT: of a segment, SPAN chunks, from the state that `links` wrote
    to `boundary`. ENDS: only what a segment makes of zeros, and of the identity without values, for `links`; these go
    to `after`, one below the other.
    """
    parts: tl.constexpr = (BV + BK if ENDS else BV) // PART
    row, first = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts * PART
    place, begin, end = row, 0, CHUNKS
    if CUT:
        row, begin, end = _segment(place, SEGMENTS, SPAN, CHUNKS)
    batch, head = row // HEADS, row % HEADS
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    out += (batch * LENGTH * HEADS + head) * VALUE
    right = _walk_outputs(
        q, k, v, system, factors, kept, sound, boundary, before, residual, out, after, row, first,
        place, begin, end, q_token, k_token, v_token, LENGTH, HEADS, CHUNKS, KEY, VALUE, C, BK, BV, PART, EVEN_K,
        EVEN_V, KEPT, BOUNDED, CUT, ENDS, DOT, PRECISION, STAGES, False,
    )
    if not right:
        tl.debug_barrier()
        _walk_outputs(
            q, k, v, system, factors, kept, sound, boundary, before, residual, out, after, row, first,
            place, begin, end, q_token, k_token, v_token, LENGTH, HEADS, CHUNKS, KEY, VALUE, C, BK, BV, PART,
            EVEN_K, EVEN_V, KEPT, BOUNDED, CUT, ENDS, DOT, PRECISION, 1, True,
        )


@triton.jit(do_not_specialize=WALKED)
def walk_adjoint(
    q, k, system, factors, kept, boundary, out_grad, after_grad, v_grad, before_grad,
    q_batch, q_token: tl.constexpr, q_head, k_batch, k_token: tl.constexpr, k_head,
    o_batch, o_token: tl.constexpr, o_head,
    LENGTH, HEADS: tl.constexpr, CHUNKS, SEGMENTS, SPAN, KEY: tl.constexpr, VALUE: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, KEPT: tl.constexpr, BOUNDED: tl.constexpr, CUT: tl.constexpr, ENDS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):
    """dV = (I + L B)⁻ᵀ B (Pᵀ dO + K̃ dS⁺) and dS = e^{G_C} dS⁺ + scale (e^G Q)ᵀ dO - (e^G K)ᵀ dV, from the last chunk
    on. dS⁺ of each chunk goes to `after_grad`.

    All of it transposed: what is carried on is then the first factor of the next product, and stays in registers. CUT
    and ENDS as in `walk_outputs`, but that the identity's is not needed again.
    """
    parts: tl.constexpr = BV // PART
    row, first = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts * PART
    place, begin, end = row, 0, CHUNKS
    if CUT:
        row, begin, end = _segment(place, SEGMENTS, SPAN, CHUNKS)
    batch, head = row // HEADS, row % HEADS
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head * k_head
    out_grad += batch * o_batch + head * o_head
    v_grad += (batch * LENGTH * HEADS + head) * VALUE
    state = tl.zeros((PART, BK), tl.float32)
    if CUT and not ENDS:
        state += load_rows(boundary + (place * BV + first) * BK, PART, BK)
    elif BOUNDED:
        states, mask = _boundary(boundary, row, first, KEY, VALUE, BK, PART)
        state += tl.trans(tl.load(states, mask=mask, other=0.0).to(tl.float32))
    for index in tl.range(begin, end, num_stages=STAGES):
        chunk = begin + end - 1 - index
        at = row * CHUNKS + chunk
        start = tl.cast(chunk * C, tl.int64)
        length = tl.minimum(LENGTH - chunk * C, C)
        key = load_tile(k + start * k_token, k_token, length, 0, KEY, C, BK, EVEN_K).to(DOT)
        query = load_tile(q + start * q_token, q_token, length, 0, KEY, C, BK, EVEN_K).to(DOT)
        tiles = place_of(system, at, 1, C, DOT)
        weights = load_rows(tiles, C, C)
        x, rest = load_inverse(tiles + C * C, C, DOT)
        reads, writes, asks = _load_factors(factors, at, C)
        if KEPT:
            keep = tl.load(kept + at)
        asked = load_turned(out_grad + start * o_token, o_token, length, first, VALUE, C, PART, EVEN_V)

        held = state.to(DOT)
        if not ENDS:
            store_rows(after_grad + (at * BV + first) * BK, held, PART, BK)
        written = tl.dot(held, tl.trans(key), input_precision=PRECISION) * writes[None, :]
        written = tl.dot(asked.to(DOT), weights, written, input_precision=PRECISION)
        written, more = two_terms(written, DOT)
        value = tl.dot(written, x, input_precision=PRECISION)
        if tl.float32 != DOT:
            value += tl.dot(written, rest, input_precision=PRECISION)
            value += tl.dot(more, x, input_precision=PRECISION)
        if not ENDS:
            store_tile(
                v_grad + start * HEADS * VALUE, tl.trans(value), HEADS * VALUE, length, first, VALUE, C, PART, EVEN_V
            )
        if KEPT:
            state = state * keep
        state = tl.dot((asked.to(tl.float32) * asks[None, :]).to(DOT), query, state, input_precision=PRECISION)
        state = tl.dot((value * -reads[None, :]).to(DOT), key, state, input_precision=PRECISION)
    if ENDS:
        store_rows(before_grad + (place * BV + first) * BK, state, PART, BK)
    elif begin == 0:
        final, inside = _boundary(before_grad, row, first, KEY, VALUE, BK, PART)
        tl.store(final, tl.trans(state), mask=inside)
