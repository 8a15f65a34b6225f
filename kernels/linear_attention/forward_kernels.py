"""Triton kernels of linear attention's forward pass: additions to the state, states, outputs (README.md)."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.delta_rule.tiles import (
    COUNTS,
    first_row,
    load_log_decay,
    load_rows,
    load_tile,
    locate,
    store_rows,
    store_tile,
)
from kernels.linear_attention.tiles import (
    after_write,
    before_read,
    channel_scores,
    head_decays,
    load_decays,
    on_diagonal,
    own_scores,
    summed,
)

# fmt: off

@triton.jit
def load_state(pointer, first_key, first_value, BV: tl.constexpr, PK: tl.constexpr, PV: tl.constexpr):
    """[PK, PV] of a stored state, whose rows have BV columns."""
    key, value = first_key + tl.arange(0, PK)[:, None], first_value + tl.arange(0, PV)[None, :]
    return tl.load(pointer + key * BV + value)


@triton.jit
def store_state(pointer, x, first_key, first_value, BV: tl.constexpr, PK: tl.constexpr, PV: tl.constexpr):
    key, value = first_key + tl.arange(0, PK)[:, None], first_value + tl.arange(0, PV)[None, :]
    tl.store(pointer + key * BV + value, x.to(pointer.dtype.element_ty))


@triton.jit
def _sound_rows(
    k, v, log_decay, k_token, v_token, HEADS, limit, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PK: tl.constexpr, PV: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, SCALAR: tl.constexpr, DIAGONAL: tl.constexpr,
):
    """How many rows precede the first with a non-finite sum of squares."""
    check = tl.zeros((C,), tl.float32)
    for first in tl.range(0, BK, PK):
        key = load_tile(k, k_token, limit, first, KEY, C, PK, EVEN_K).to(tl.float32)
        check += tl.sum(key * key, 1)
        if DIAGONAL:
            decays = load_decays(log_decay, HEADS * KEY, limit, first, KEY, C, PK, EVEN_K)
            check += tl.sum(decays * decays, 1)
    for first in tl.range(0, BV, PV):
        value = load_tile(v, v_token, limit, first, VALUE, C, PV, EVEN_V).to(tl.float32)
        check += tl.sum(value * value, 1)
    if SCALAR:
        decays = load_log_decay(log_decay, HEADS, limit, C)
        check += decays * decays
    return tl.minimum(limit, first_row(check * 0.0 != 0.0, C))


@triton.jit(do_not_specialize=COUNTS)
def additions(
    q, k, v, log_decay, bonus, addition, kept, scores, sound, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PK: tl.constexpr, PV: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, SCALAR: tl.constexpr, DIAGONAL: tl.constexpr, BONUS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, TERMS: tl.constexpr,
):
    """Of each chunk: what it adds to the state and how much it keeps of it, how many rows are sound; and where each
    channel has its decay, the scores."""
    batch, chunk, head, row = locate(tl.program_id(0), CHUNKS, HEADS)
    start = chunk * C
    length = tl.minimum(LENGTH - start, C)
    at = row * CHUNKS + chunk
    q += batch * q_batch + start * q_token + head * q_head
    k += batch * k_batch + start * k_token + head * k_head
    v += batch * v_batch + start * v_token + head * v_head
    if DIAGONAL:
        log_decay += ((batch * LENGTH + start) * HEADS + head) * KEY
    if SCALAR:
        log_decay += (batch * LENGTH + start) * HEADS + head
    if BONUS:
        bonus += head * KEY
    addition += at * (BK * BV)
    limit = _sound_rows(
        k, v, log_decay, k_token, v_token, HEADS, length, KEY, VALUE,
        C, BK, BV, PK, PV, EVEN_K, EVEN_V, SCALAR, DIAGONAL,
    )
    tl.store(sound + at, limit)
    # After a token that is not sound, no state is.
    spoilt = tl.where(limit < length, float("nan"), 0.0)
    if SCALAR:
        _, _, to_end, whole = head_decays(load_log_decay(log_decay, HEADS, limit, C), C, BONUS)
        tl.store(kept + at, whole)
    if DIAGONAL:
        attention = tl.zeros((C, C), tl.float32)
        own = tl.zeros((C,), tl.float32)
    for first in tl.range(0, BK, PK):
        key = load_tile(k, k_token, limit, first, KEY, C, PK, EVEN_K)
        writer = key
        if SCALAR:
            writer = key.to(tl.float32) * to_end[:, None]
        if DIAGONAL:
            decays = load_decays(log_decay, HEADS * KEY, limit, first, KEY, C, PK, EVEN_K)
            query = load_tile(q, q_token, limit, first, KEY, C, PK, EVEN_K)
            attention += channel_scores(query, key, decays, C, BONUS, DOT, PRECISION, TERMS)
            own += own_scores(query, key, bonus, first, KEY, PK, BONUS)
            tl.store(kept + at * BK + first + tl.arange(0, PK), tl.exp(tl.sum(decays, 0)))
            writer = key.to(tl.float32) * tl.exp(summed(after_write(C), decays, TERMS))
        writer = tl.trans(writer.to(DOT))
        for first_value in tl.range(0, BV, PV):
            value = load_tile(v, v_token, limit, first_value, VALUE, C, PV, EVEN_V).to(DOT)
            added = tl.dot(writer, value, input_precision=PRECISION) + spoilt
            store_state(addition, added, first, first_value, BV, PK, PV)
    if DIAGONAL:
        attention = (attention + on_diagonal(own, C)) * scale
        store_rows(scores + at * (C * C), attention, C, C)


@triton.jit(do_not_specialize=["CHUNKS"])
def states(
    addition, kept, boundary, before, after, CHUNKS, KEY, VALUE,
    BK: tl.constexpr, BV: tl.constexpr, ROWS: tl.constexpr, PV: tl.constexpr, SCALAR: tl.constexpr,
    DIAGONAL: tl.constexpr, BOUNDED: tl.constexpr, BACKWARD: tl.constexpr, STAGES: tl.constexpr,
):
    """The recurrence S⁺ = kept S + addition, entry by entry, or its adjoint from the last chunk to the first.

    Writes the state that each chunk starts from (for the adjoint: the gradient of the one it ends with) to `before` and
    the last one to `after`. The first one is zeros, `boundary` if BOUNDED.
    """
    columns: tl.constexpr = BV // PV
    tiles: tl.constexpr = BK // ROWS * columns
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    key = tile // columns * ROWS + tl.arange(0, ROWS)
    value = tile % columns * PV + tl.arange(0, PV)[None, :]
    mask = (key[:, None] < KEY) & (value < VALUE)
    outside = (row * KEY + key[:, None]) * VALUE + value
    state = tl.zeros((ROWS, PV), tl.float32)
    if BOUNDED:
        state += tl.load(boundary + outside, mask=mask, other=0.0).to(tl.float32)
    for index in tl.range(0, CHUNKS, num_stages=STAGES):
        at = row * CHUNKS + (CHUNKS - 1 - index if BACKWARD else index)
        here = at * (BK * BV) + key[:, None] * BV + value
        added = tl.load(addition + here).to(tl.float32)
        tl.store(before + here, state.to(before.dtype.element_ty))
        if SCALAR:
            state = state * tl.load(kept + at)
        if DIAGONAL:
            state = state * tl.load(kept + at * BK + key)[:, None]
        state += added
    tl.store(after + outside, state, mask=mask)


@triton.jit
def attend(overlap, own, log_decay, HEADS, limit, scale, C: tl.constexpr, SCALAR: tl.constexpr, BONUS: tl.constexpr):
    """Scores of a chunk with one decay a head or none, of the products q_i k_j and each token's own score."""
    if SCALAR:
        between, _, _, _ = head_decays(load_log_decay(log_decay, HEADS, limit, C), C, BONUS)
        attention = overlap * between
    else:
        attention = overlap
    attention = tl.where(tl.arange(0, C)[:, None] > tl.arange(0, C)[None, :], attention, 0.0)
    return (attention + on_diagonal(own, C)) * scale


@triton.jit(do_not_specialize=COUNTS)
def outputs(
    q, k, v, log_decay, bonus, before, scores, sound, out, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PK: tl.constexpr, PV: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, SCALAR: tl.constexpr, DIAGONAL: tl.constexpr, BONUS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, TERMS: tl.constexpr,
):
    """O = scale e^G Q S + P V, PV columns of it."""
    batch, chunk, head, row = locate(tl.program_id(0), CHUNKS, HEADS)
    first_value = tl.program_id(1) * PV
    start = chunk * C
    length = tl.minimum(LENGTH - start, C)
    at = row * CHUNKS + chunk
    limit = tl.minimum(length, tl.load(sound + at))
    q += batch * q_batch + start * q_token + head * q_head
    k += batch * k_batch + start * k_token + head * k_head
    v += batch * v_batch + start * v_token + head * v_head
    out += ((batch * LENGTH + start) * HEADS + head) * VALUE
    if DIAGONAL:
        log_decay += ((batch * LENGTH + start) * HEADS + head) * KEY
    if SCALAR:
        log_decay += (batch * LENGTH + start) * HEADS + head
    if BONUS:
        bonus += head * KEY

    read = tl.zeros((C, PV), tl.float32)
    overlap = tl.zeros((C, C), tl.float32)
    own = tl.zeros((C,), tl.float32)
    for first in tl.range(0, BK, PK):
        query = load_tile(q, q_token, limit, first, KEY, C, PK, EVEN_K)
        state = load_state(before + at * (BK * BV), first, first_value, BV, PK, PV)
        if DIAGONAL:
            decays = load_decays(log_decay, HEADS * KEY, limit, first, KEY, C, PK, EVEN_K)
            query = query.to(tl.float32) * tl.exp(summed(before_read(C, BONUS), decays, TERMS))
        else:
            key = load_tile(k, k_token, limit, first, KEY, C, PK, EVEN_K)
            overlap = tl.dot(query.to(DOT), tl.trans(key.to(DOT)), overlap, input_precision=PRECISION)
            own += own_scores(query, key, bonus, first, KEY, PK, BONUS)
        read = tl.dot(query.to(DOT), state, read, input_precision=PRECISION)
    read = read * scale
    if SCALAR:
        _, from_start, _, _ = head_decays(load_log_decay(log_decay, HEADS, limit, C), C, BONUS)
        read = read * from_start[:, None]
    if DIAGONAL:
        attention = load_rows(scores + at * (C * C), C, C)
    else:
        attention = attend(overlap, own, log_decay, HEADS, limit, scale, C, SCALAR, BONUS).to(DOT)
    value = load_tile(v, v_token, limit, first_value, VALUE, C, PV, EVEN_V).to(DOT)
    read = tl.dot(attention, value, read, input_precision=PRECISION)
    read = tl.where(tl.arange(0, C)[:, None] < limit, read, float("nan"))
    store_tile(out, read, HEADS * VALUE, length, first_value, VALUE, C, PV, EVEN_V)
