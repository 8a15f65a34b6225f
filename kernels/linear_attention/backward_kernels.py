"""Triton kernels of linear attention's backward pass; the adjoint of the states is in `forward_kernels`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.delta_rule.tiles import (
    COUNTS,
    load_log_decay,
    load_rows,
    load_tile,
    locate,
    store_rows,
    store_tile,
)
from kernels.linear_attention.forward_kernels import attend, load_state, store_state
from kernels.linear_attention.tiles import (
    across_middle,
    after_write,
    before_read,
    head_decays,
    load_bonus,
    load_decays,
    own_scores,
    summed,
    to_middle,
    upper_half,
)

# fmt: off

@triton.jit(do_not_specialize=COUNTS)
def adjoint_additions(
    q, v, log_decay, sound, out_grad, addition, scores_grad, scale,
    q_batch, q_token, q_head, v_batch, v_token, v_head, o_batch, o_token, o_head, LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PK: tl.constexpr, PV: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, SCALAR: tl.constexpr, DIAGONAL: tl.constexpr, BONUS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, TERMS: tl.constexpr,
):
    """What a chunk's outputs add to the gradient of the state it starts from, (e^G Q)ᵀ scale dO; and the gradient of
    its scores, scale dO Vᵀ up to the diagonal, mirrored beyond it where each channel has its decay."""
    batch, chunk, head, row = locate(tl.program_id(0), CHUNKS, HEADS)
    start = chunk * C
    at = row * CHUNKS + chunk
    limit = tl.minimum(tl.minimum(LENGTH - start, C), tl.load(sound + at))
    q += batch * q_batch + start * q_token + head * q_head
    v += batch * v_batch + start * v_token + head * v_head
    out_grad += batch * o_batch + start * o_token + head * o_head
    addition += at * (BK * BV)
    if DIAGONAL:
        log_decay += ((batch * LENGTH + start) * HEADS + head) * KEY
    if SCALAR:
        log_decay += (batch * LENGTH + start) * HEADS + head
        _, from_start, _, _ = head_decays(load_log_decay(log_decay, HEADS, limit, C), C, BONUS)

    weights = tl.zeros((C, C), tl.float32)
    for first in tl.range(0, BV, PV):
        o = load_tile(out_grad, o_token, limit, first, VALUE, C, PV, EVEN_V).to(DOT)
        value = load_tile(v, v_token, limit, first, VALUE, C, PV, EVEN_V).to(DOT)
        weights = tl.dot(o, tl.trans(value), weights, input_precision=PRECISION)
    lower = tl.arange(0, C)[:, None] >= tl.arange(0, C)[None, :]
    weights = tl.where(lower, weights * scale, tl.trans(weights * scale) if DIAGONAL else 0.0)
    store_rows(scores_grad + at * (C * C), weights, C, C)
    for first in tl.range(0, BK, PK):
        query = load_tile(q, q_token, limit, first, KEY, C, PK, EVEN_K)
        if SCALAR:
            query = query.to(tl.float32) * from_start[:, None]
        if DIAGONAL:
            decays = load_decays(log_decay, HEADS * KEY, limit, first, KEY, C, PK, EVEN_K)
            query = query.to(tl.float32) * tl.exp(summed(before_read(C, BONUS), decays, TERMS))
        reader = tl.trans(query.to(DOT))
        for first_value in tl.range(0, BV, PV):
            o = load_tile(out_grad, o_token, limit, first_value, VALUE, C, PV, EVEN_V).to(DOT)
            added = tl.dot(reader, o, input_precision=PRECISION) * scale
            store_state(addition, added, first, first_value, BV, PK, PV)


@triton.jit
def _through_head_decays(
    query, key, query_grad, key_grad, weights, whole_grad, log_decay, decay_grad, HEADS, limit, length,
    C: tl.constexpr, BONUS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):
    """What passed through the states gets its decays; writes the part of these channels in the log-decays' gradient.
    Returns the gradients of query and key through the states and that of the products of queries and keys."""
    between, from_start, to_end, whole = head_decays(load_log_decay(log_decay, HEADS, limit, C), C, BONUS)
    query_grad = query_grad * from_start[:, None]
    key_grad = key_grad * to_end[:, None]
    weights = weights * between
    flow = tl.dot(query.to(DOT), tl.trans(key.to(DOT)), input_precision=PRECISION) * weights
    read = tl.sum(query.to(tl.float32) * query_grad, 1) + tl.sum(flow, 1)
    written = tl.sum(key.to(tl.float32) * key_grad, 1)
    # A log-decay stands between all that is read after it and all that is written before it.
    reads = tl.sum(tl.where(before_read(C, BONUS), read[:, None], 0.0), 0)
    writes = tl.sum(tl.where(after_write(C), written[:, None], 0.0), 0)
    inside = tl.sum(tl.where(after_write(C), 0.0, tl.sum(flow, 0)[:, None]), 0)
    grad = reads + writes - inside + tl.sum(whole_grad, 0) * whole
    rows = tl.arange(0, C)
    tl.store(decay_grad + rows * HEADS, grad, mask=rows < length)
    return query_grad, key_grad, weights


@triton.jit
def _through_channel_decays(
    query, key, query_grad, key_grad, weights, whole_grad, decays,
    C: tl.constexpr, BONUS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, TERMS: tl.constexpr,
):
    """Gradients of query, key and log-decays, but for each token's score with itself; `query_grad` and `key_grad` are
    those through the states, without their decays, and `weights` the symmetric gradient of the scores."""
    once: tl.constexpr = 1 if TERMS > 0 else 0
    mask = before_read(C, BONUS)
    query_grad = query_grad * tl.exp(summed(mask, decays, TERMS))
    decay_grad = summed(tl.trans(mask.to(DOT)), query.to(tl.float32) * query_grad, once)
    mask = after_write(C)
    key_grad = key_grad * tl.exp(summed(mask, decays, TERMS))
    decay_grad += summed(tl.trans(mask.to(DOT)), key.to(tl.float32) * key_grad, once)
    decay_grad += (whole_grad * tl.exp(tl.sum(decays, 0)))[None, :]
    size = 1
    while size < C:
        mask = to_middle(size, C, BONUS)
        decay = tl.exp(summed(mask, decays, TERMS))
        upper = upper_half(size, C)
        moved = tl.where(upper, query, key).to(tl.float32) * decay
        inside = tl.where(across_middle(size, C), weights, 0.0).to(DOT)
        moved_grad = tl.dot(inside, moved.to(DOT), input_precision=PRECISION)
        decay_grad += summed(tl.trans(mask.to(DOT)), moved * moved_grad, once)
        moved_grad = moved_grad * decay
        query_grad += tl.where(upper, moved_grad, 0.0)
        key_grad += tl.where(upper, 0.0, moved_grad)
        size *= 2
    return query_grad, key_grad, decay_grad


@triton.jit(do_not_specialize=COUNTS)
def gradients(
    q, k, v, log_decay, bonus, before, sound, out_grad, after_grad, scores_grad,
    q_grad, k_grad, decay_grad, bonus_grad, scale, part_stride,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, o_batch, o_token, o_head,
    LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PK: tl.constexpr, PV: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, SCALAR: tl.constexpr, DIAGONAL: tl.constexpr, BONUS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, TERMS: tl.constexpr,
):
    """Gradients of PK channels of q and k, of their log-decays (their part of it, if the head has one) and bonus."""
    batch, chunk, head, row = locate(tl.program_id(0), CHUNKS, HEADS)
    first = tl.program_id(1) * PK
    start = chunk * C
    length = tl.minimum(LENGTH - start, C)
    at = row * CHUNKS + chunk
    limit = tl.minimum(length, tl.load(sound + at))
    q += batch * q_batch + start * q_token + head * q_head
    k += batch * k_batch + start * k_token + head * k_head
    v += batch * v_batch + start * v_token + head * v_head
    out_grad += batch * o_batch + start * o_token + head * o_head
    token = (batch * LENGTH + start) * HEADS + head

    query_grad = tl.zeros((C, PK), tl.float32)
    key_grad = tl.zeros((C, PK), tl.float32)
    whole_grad = tl.zeros((PK,), tl.float32)
    for first_value in tl.range(0, BV, PV):
        state = load_state(before + at * (BK * BV), first, first_value, BV, PK, PV)
        state_grad = load_state(after_grad + at * (BK * BV), first, first_value, BV, PK, PV)
        o = load_tile(out_grad, o_token, limit, first_value, VALUE, C, PV, EVEN_V).to(DOT)
        value = load_tile(v, v_token, limit, first_value, VALUE, C, PV, EVEN_V).to(DOT)
        query_grad = tl.dot(o, tl.trans(state), query_grad, input_precision=PRECISION)
        key_grad = tl.dot(value, tl.trans(state_grad), key_grad, input_precision=PRECISION)
        if SCALAR or DIAGONAL:
            whole_grad += tl.sum(state.to(tl.float32) * state_grad.to(tl.float32), 1)
    query_grad = query_grad * scale

    query = load_tile(q, q_token, limit, first, KEY, C, PK, EVEN_K)
    key = load_tile(k, k_token, limit, first, KEY, C, PK, EVEN_K)
    scores_grad += at * (C * C)
    weights = load_rows(scores_grad, C, C)
    own = tl.load(scores_grad + tl.arange(0, C) * (C + 1)).to(tl.float32)[:, None]
    if DIAGONAL:
        decays = load_decays(log_decay + token * KEY, HEADS * KEY, limit, first, KEY, C, PK, EVEN_K)
        query_grad, key_grad, found = _through_channel_decays(
            query, key, query_grad, key_grad, weights, whole_grad, decays, C, BONUS, DOT, PRECISION, TERMS
        )
        store_tile(decay_grad + token * KEY, found, HEADS * KEY, length, first, KEY, C, PK, EVEN_K)
    else:
        if SCALAR:
            query_grad, key_grad, weights = _through_head_decays(
                query, key, query_grad, key_grad, weights, whole_grad, log_decay + token,
                decay_grad + tl.program_id(1).to(tl.int64) * part_stride + token, HEADS, limit, length,
                C, BONUS, DOT, PRECISION,
            )
        below = tl.arange(0, C)[:, None] > tl.arange(0, C)[None, :]
        inside = tl.where(below, weights, 0.0).to(DOT)
        query_grad = tl.dot(inside, key.to(DOT), query_grad, input_precision=PRECISION)
        key_grad = tl.dot(tl.trans(inside), query.to(DOT), key_grad, input_precision=PRECISION)
    query, key = query.to(tl.float32), key.to(tl.float32)
    if BONUS:
        column = first + tl.arange(0, PK)
        tl.store(bonus_grad + at * KEY + column, tl.sum(own * query * key, 0), mask=column < KEY)
        own = own * load_bonus(bonus + head * KEY, first, KEY, PK)
    store_tile(q_grad + token * KEY, query_grad + own * key, HEADS * KEY, length, first, KEY, C, PK, EVEN_K)
    store_tile(k_grad + token * KEY, key_grad + own * query, HEADS * KEY, length, first, KEY, C, PK, EVEN_K)


@triton.jit(do_not_specialize=COUNTS)
def value_gradients(
    q, k, log_decay, bonus, scores, sound, out_grad, after_grad, v_grad, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, o_batch, o_token, o_head, LENGTH, HEADS, CHUNKS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PK: tl.constexpr, PV: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, SCALAR: tl.constexpr, DIAGONAL: tl.constexpr, BONUS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, TERMS: tl.constexpr,
):
    """dV = Pᵀ dO + K̃ dS⁺, PV columns of it."""
    batch, chunk, head, row = locate(tl.program_id(0), CHUNKS, HEADS)
    first_value = tl.program_id(1) * PV
    start = chunk * C
    length = tl.minimum(LENGTH - start, C)
    at = row * CHUNKS + chunk
    limit = tl.minimum(length, tl.load(sound + at))
    q += batch * q_batch + start * q_token + head * q_head
    k += batch * k_batch + start * k_token + head * k_head
    out_grad += batch * o_batch + start * o_token + head * o_head
    token = (batch * LENGTH + start) * HEADS + head
    if DIAGONAL:
        log_decay += token * KEY
    if SCALAR:
        log_decay += token
    if BONUS:
        bonus += head * KEY

    value_grad = tl.zeros((C, PV), tl.float32)
    overlap = tl.zeros((C, C), tl.float32)
    own = tl.zeros((C,), tl.float32)
    for first in tl.range(0, BK, PK):
        key = load_tile(k, k_token, limit, first, KEY, C, PK, EVEN_K)
        state_grad = load_state(after_grad + at * (BK * BV), first, first_value, BV, PK, PV)
        if DIAGONAL:
            decays = load_decays(log_decay, HEADS * KEY, limit, first, KEY, C, PK, EVEN_K)
            key = key.to(tl.float32) * tl.exp(summed(after_write(C), decays, TERMS))
        else:
            query = load_tile(q, q_token, limit, first, KEY, C, PK, EVEN_K)
            overlap = tl.dot(query.to(DOT), tl.trans(key.to(DOT)), overlap, input_precision=PRECISION)
            own += own_scores(query, key, bonus, first, KEY, PK, BONUS)
        value_grad = tl.dot(key.to(DOT), state_grad, value_grad, input_precision=PRECISION)
    if SCALAR:
        _, _, to_end, _ = head_decays(load_log_decay(log_decay, HEADS, limit, C), C, BONUS)
        value_grad = value_grad * to_end[:, None]
    if DIAGONAL:
        attention = load_rows(scores + at * (C * C), C, C)
    else:
        attention = attend(overlap, own, log_decay, HEADS, limit, scale, C, SCALAR, BONUS).to(DOT)
    o = load_tile(out_grad, o_token, limit, first_value, VALUE, C, PV, EVEN_V).to(DOT)
    value_grad = tl.dot(tl.trans(attention), o, value_grad, input_precision=PRECISION)
    store_tile(v_grad + token * VALUE, value_grad, HEADS * VALUE, length, first_value, VALUE, C, PV, EVEN_V)
