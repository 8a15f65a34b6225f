"""Triton kernels of the delta rule's backward pass; the adjoint of the states is in `forward_kernels`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.delta_rule.tiles import (
    COUNTS,
    bounded,
    inverse_length,
    load_inverse,
    load_kept,
    load_keys,
    load_rows,
    load_tile,
    locate,
    one_document,
    place_of,
    store_rows,
    store_tile,
    tile_dot,
    two_dot,
    two_terms,
)

# fmt: off

@triton.jit
def _adjoint_additions(
    q, k, beta, sums, documents, inverse, sound, out_grad, addition, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, o_batch, o_token, o_head,
    LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, GATED: tl.constexpr, APART: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):
    """What a chunk's outputs add to the gradient of the state it starts from: (e^G Q - P W)ᵀ scale dO."""
    batch, chunk, head, row = locate(tl.program_id(0), CHUNKS, HEADS)
    start = chunk * C
    at = row * CHUNKS + chunk
    limit = tl.minimum(tl.minimum(LENGTH - start, C), tl.load(sound + at))
    q += batch * q_batch + start * q_token + head * q_head
    k += batch * k_batch + start * k_token + head * k_head
    out_grad += batch * o_batch + start * o_token + head * o_head
    gates = (batch * LENGTH + start) * HEADS + head
    rows = tl.arange(0, C)

    query = load_keys(q, q_token, limit, KEY, C, BK, EVEN_K, NORMALISE, EPS, DOT)
    key = load_keys(k, k_token, limit, KEY, C, BK, EVEN_K, NORMALISE, EPS, DOT)
    erased = tl.load(beta + gates + rows * HEADS, mask=rows < limit, other=0.0).to(tl.float32)
    x, rest = load_inverse(place_of(inverse, at, 0, C, DOT), C, DOT)
    attention = tl.dot(key, tl.trans(query), input_precision=PRECISION)
    if GATED:
        between, from_start, _, _ = load_kept(sums, documents, at, batch, start, LENGTH, C, DOT, APART)
        attention = attention * tl.trans(between)
        erased = erased * from_start
    attention = tl.where(rows[:, None] <= rows[None, :], attention * scale, 0.0).to(DOT)
    for first in tl.static_range(0, BV, PART):
        o = load_tile(out_grad, o_token, limit, first, VALUE, C, PART, EVEN_V)
        z = tl.dot(attention, o.to(DOT), input_precision=PRECISION)
        z = two_dot(tl.trans(x), tl.trans(rest), z.to(DOT), False, DOT, PRECISION) * erased[:, None]
        if GATED:
            o = o.to(tl.float32) * from_start[:, None]
        added = tl.dot(tl.trans(o.to(DOT)), query, input_precision=PRECISION) * scale
        added -= tl.dot(tl.trans(z.to(DOT)), key, input_precision=PRECISION)
        store_rows(addition + (at * BV + first) * BK, added, PART, BK)


@triton.jit(do_not_specialize=COUNTS)
def adjoint_additions(
    q, k, beta, sums, documents, inverse, sound, out_grad, addition, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, o_batch, o_token, o_head,
    LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, GATED: tl.constexpr, APART: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):
    """What a chunk's outputs add to the gradient of the state it starts from: (e^G Q - P W)ᵀ scale dO."""
    if not APART or one_document(documents, LENGTH, HEADS, CHUNKS, C):
        _adjoint_additions(
            q, k, beta, sums, documents, inverse, sound, out_grad, addition, scale, q_batch, q_token, q_head, k_batch,
            k_token, k_head, o_batch, o_token, o_head, LENGTH, HEADS, CHUNKS, KEY, VALUE, C, BK, BV, PART, EVEN_K,
            EVEN_V, GATED, False, NORMALISE, EPS, DOT, PRECISION,
        )
    else:
        _adjoint_additions(
            q, k, beta, sums, documents, inverse, sound, out_grad, addition, scale, q_batch, q_token, q_head, k_batch,
            k_token, k_head, o_batch, o_token, o_head, LENGTH, HEADS, CHUNKS, KEY, VALUE, C, BK, BV, PART, EVEN_K,
            EVEN_V, True, True, NORMALISE, EPS, DOT, PRECISION,
        )


@triton.jit
def _gradients(
    q, k, v, beta, sums, documents, inverse, before, sound, out_grad, after_grad,
    q_grad, k_grad, v_grad, beta_grad, log_decay_grad, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, o_batch, o_token, o_head,
    LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, GATED: tl.constexpr, APART: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, FLIP: tl.constexpr,
):
    """All gradients of a chunk, from its first state and the gradient of its last one.

    FLIP: tiles of keys and values are computed transposed; wide ones then have enough rows for eight warps.
    """
    batch, chunk, head, row = locate(tl.program_id(0), CHUNKS, HEADS)
    start = chunk * C
    length = tl.minimum(LENGTH - start, C)
    at = row * CHUNKS + chunk
    limit = tl.minimum(length, tl.load(sound + at))
    q += batch * q_batch + start * q_token + head * q_head
    k += batch * k_batch + start * k_token + head * k_head
    v += batch * v_batch + start * v_token + head * v_head
    out_grad += batch * o_batch + start * o_token + head * o_head
    gates = (batch * LENGTH + start) * HEADS + head
    rows = tl.arange(0, C)
    below = rows[:, None] > rows[None, :]

    query = load_keys(q, q_token, limit, KEY, C, BK, EVEN_K, NORMALISE, EPS, DOT)
    key = load_keys(k, k_token, limit, KEY, C, BK, EVEN_K, NORMALISE, EPS, DOT)
    strength = tl.load(beta + gates + rows * HEADS, mask=rows < limit, other=0.0).to(tl.float32)
    x, rest = load_inverse(place_of(inverse, at, 0, C, DOT), C, DOT)
    attention = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    if GATED:
        between, from_start, to_end, whole = load_kept(sums, documents, at, batch, start, LENGTH, C, DOT, APART)
        attention = attention * between
    attention = tl.where(below | (rows[:, None] == rows[None, :]), attention, 0.0)
    weights = attention.to(DOT)

    attention_grad = tl.zeros((C, C), tl.float32)
    overlap_grad = tl.zeros((C, C), tl.float32)
    query_grad = tl.zeros((C, BK), tl.float32)
    key_grad = tl.zeros((C, BK), tl.float32)
    strength_grad = tl.zeros((C,), tl.float32)
    cumulative_grad = tl.zeros((C,), tl.float32)
    decayed_grad = tl.zeros((C, BK), tl.float32)
    decayed = tl.where(rows < limit - 1, 1.0, 0.0)
    whole_grad = 0.0
    for first in tl.range(0, BV, PART):
        state = load_rows(before + (at * BV + first) * BK, PART, BK)
        state_grad = load_rows(after_grad + (at * BV + first) * BK, PART, BK)
        value = load_tile(v, v_token, limit, first, VALUE, C, PART, EVEN_V).to(tl.float32)
        o = load_tile(out_grad, o_token, limit, first, VALUE, C, PART, EVEN_V).to(DOT)
        stored = tile_dot(key, tl.trans(state), FLIP, PRECISION)
        u_grad = tile_dot(key, tl.trans(state_grad), FLIP, PRECISION)
        if GATED:
            stored = stored * from_start[:, None]
            u_grad = u_grad * to_end[:, None]
        error = value - stored
        u = two_dot(x, rest, bounded(error * strength[:, None]).to(DOT), FLIP, DOT, PRECISION)
        if GATED and not APART:
            # The last token's own part, to the end of the chunk, is not decayed.
            moved = tl.sum(u * u_grad, 1) * decayed
            cumulative_grad -= moved
            whole_grad += tl.sum(moved, 0) + tl.sum(state.to(tl.float32) * state_grad.to(tl.float32)) * whole
        u_grad += tile_dot(tl.trans(weights), o, FLIP, PRECISION)
        u_grad, more = two_terms(u_grad, DOT)
        written = two_dot(tl.trans(x), tl.trans(rest), u_grad, FLIP, DOT, PRECISION)
        if tl.float32 != DOT:
            written += tile_dot(tl.trans(x), more, FLIP, PRECISION)
        strength_grad += tl.sum(written * error, 1)
        value_grad = written * strength[:, None]
        store_tile(v_grad + gates * VALUE, value_grad, HEADS * VALUE, length, first, VALUE, C, PART, EVEN_V)
        transposed = tl.trans(u.to(DOT))
        attention_grad += tl.dot(o, transposed, input_precision=PRECISION)
        overlap_grad -= tl.dot(written.to(DOT), transposed, input_precision=PRECISION)
        query_grad += tile_dot(o, state, FLIP, PRECISION)
        if GATED:
            if not APART and not FLIP:
                cumulative_grad -= tl.sum(value_grad * stored, 1)
            value_grad = value_grad * from_start[:, None]
            u = u * to_end[:, None]
        key_grad += tile_dot(u.to(DOT), state_grad, FLIP, PRECISION)
        erased_grad = tile_dot(value_grad.to(DOT), state, FLIP, PRECISION)
        key_grad -= erased_grad
        if GATED and not APART and FLIP:
            # Instead of the sum above: here a row's is one across warps, and is made once for this and q.
            decayed_grad -= key.to(tl.float32) * erased_grad

    query_grad = query_grad * scale
    if GATED:
        # Again, rather than in registers all the while.
        between, from_start, _, _ = load_kept(sums, documents, at, batch, start, LENGTH, C, DOT, APART)
        query_grad = query_grad * from_start[:, None]
        if not APART:
            reading = query.to(tl.float32) * query_grad
            if FLIP:
                reading += decayed_grad
            cumulative_grad += tl.sum(reading, 1)
            flow = tl.where(below, weights.to(tl.float32) * attention_grad, 0.0)
            cumulative_grad += tl.sum(flow, 1) - tl.sum(flow, 0)
        attention_grad = attention_grad * between
    attention_grad = tl.where(below | (rows[:, None] == rows[None, :]), attention_grad * scale, 0.0)
    weights = attention_grad.to(DOT)
    query_grad += tile_dot(weights, key, FLIP, PRECISION)
    key_grad += tile_dot(tl.trans(weights), query, FLIP, PRECISION)
    if NORMALISE:
        query_grad = through_length(query_grad, q, q_token, limit, KEY, C, BK, EVEN_K, EPS)
    store_tile(q_grad + gates * KEY, query_grad, HEADS * KEY, length, 0, KEY, C, BK, EVEN_K)

    overlap = tl.dot(key, tl.trans(key), input_precision=PRECISION)
    if GATED:
        overlap_grad = overlap_grad * between
    overlap_grad = tl.where(below, overlap_grad, 0.0)
    strength_grad += tl.sum(overlap * overlap_grad, 1)
    tl.store(beta_grad + gates + rows * HEADS, strength_grad.to(beta_grad.dtype.element_ty), mask=rows < length)
    if GATED and not APART:
        overlap_grad *= strength[:, None]
        turned = tl.trans(overlap_grad)
        cumulative_grad += tl.sum(overlap * (overlap_grad - turned), 1)
        decay_grad = (tl.cumsum(cumulative_grad, 0, reverse=True) + whole_grad).to(log_decay_grad.dtype.element_ty)
        tl.store(log_decay_grad + gates + rows * HEADS, decay_grad, mask=rows < length)
        overlap_grad += turned
    else:
        overlap_grad *= strength[:, None]
        overlap_grad += tl.trans(overlap_grad)
    key_grad += tile_dot(overlap_grad.to(DOT), key, FLIP, PRECISION)
    if NORMALISE:
        key_grad = through_length(key_grad, k, k_token, limit, KEY, C, BK, EVEN_K, EPS)
    store_tile(k_grad + gates * KEY, key_grad, HEADS * KEY, length, 0, KEY, C, BK, EVEN_K)


@triton.jit(do_not_specialize=COUNTS)
def gradients(
    q, k, v, beta, sums, documents, inverse, before, sound, out_grad, after_grad,
    q_grad, k_grad, v_grad, beta_grad, log_decay_grad, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, o_batch, o_token, o_head,
    LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, GATED: tl.constexpr, APART: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, FLIP: tl.constexpr,
):
    """All gradients of a chunk, from its first state and the gradient of its last one.

    FLIP: tiles of keys and values are computed transposed; wide ones then have enough rows for eight warps.
    """
    if not APART or one_document(documents, LENGTH, HEADS, CHUNKS, C):
        _gradients(
            q, k, v, beta, sums, documents, inverse, before, sound, out_grad, after_grad, q_grad, k_grad, v_grad,
            beta_grad, log_decay_grad, scale, q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token,
            v_head, o_batch, o_token, o_head, LENGTH, HEADS, CHUNKS, KEY, VALUE, C, BK, BV, PART, EVEN_K, EVEN_V, GATED,
            False, NORMALISE, EPS, DOT, PRECISION, FLIP,
        )
    else:
        _gradients(
            q, k, v, beta, sums, documents, inverse, before, sound, out_grad, after_grad, q_grad, k_grad, v_grad,
            beta_grad, log_decay_grad, scale, q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token,
            v_head, o_batch, o_token, o_head, LENGTH, HEADS, CHUNKS, KEY, VALUE, C, BK, BV, PART, EVEN_K, EVEN_V, True,
            True, NORMALISE, EPS, DOT, PRECISION, FLIP,
        )


@triton.jit
def through_length(
    grad, pointer, stride, limit, width, C: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr, EPS: tl.constexpr
):
    """The gradient of a tile whose rows were divided by their lengths."""
    tile = load_tile(pointer, stride, limit, 0, width, C, BLOCK, EVEN)
    factor = inverse_length(tile, EPS)
    unit = tile.to(tl.float32) * factor
    return factor * (grad - unit * tl.sum(unit * grad, 1)[:, None])
