"""Triton kernels of linear attention that walk through a sequence with the state in registers (README.md)."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.delta_rule.tiles import LARGEST, ZERO_BELOW, first_row, load_log_decay, load_tile, load_turned, store_tile
from kernels.linear_attention.forward_kernels import load_state, store_state

# Arguments whose value must not make another variant of a kernel.
COUNTS = ("LENGTH", "HEADS")
LOG2_E = tl.constexpr(1.4426950408889634)

# fmt: off

@triton.jit(do_not_specialize=COUNTS)
def decay_sums(
    log_decay, sound, sums, LENGTH, HEADS, C: tl.constexpr, CHUNKS: tl.constexpr, STOPPED: tl.constexpr
):
    """Sums of the log-decays up to and with each token of its chunk, as powers of two, in two float32 numbers,
    of CHUNKS chunks; if STOPPED, as if those after the sound tokens were 0."""
    groups = tl.cdiv(LENGTH, C * CHUNKS)
    row, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    batch, head = row // HEADS, row % HEADS
    chunk, place = group * CHUNKS + tl.arange(0, CHUNKS)[:, None], tl.arange(0, C)[None, :]
    token = chunk * C + place
    log_decay += (batch * LENGTH + token) * HEADS + head
    count = tl.load(sound + row) if STOPPED else LENGTH
    decay = tl.load(log_decay, mask=token < count, other=0.0).to(tl.float32)
    decay = tl.where(decay < ZERO_BELOW, ZERO_BELOW, decay)  # nan stays
    exact = tl.cumsum(decay.to(tl.float64), 1) * LOG2_E
    high = exact.to(tl.float32)
    chunks = tl.cdiv(LENGTH, C)
    sums += (row * chunks + chunk) * (2 * C) + place
    tl.store(sums, high, mask=chunk < chunks)
    tl.store(sums + C, (exact - high.to(tl.float64)).to(tl.float32), mask=chunk < chunks)


@triton.jit
def _load_total(sums, chunk, C: tl.constexpr, DOT: tl.constexpr):
    """The sum of a whole chunk, in two numbers; the second one is 0 for products in bfloat16."""
    sums += tl.cast(chunk, tl.int64) * (2 * C) + C - 1
    low = 0.0
    if tl.float32 == DOT:
        low = tl.load(sums + C)
    return tl.load(sums), low


@triton.jit
def _load_sums(sums, total, total_low, C: tl.constexpr, BACK: tl.constexpr, DOT: tl.constexpr):
    """From a written token to one that reads it [C, C], from where the walk comes from to a reading token [C], from a
    written one to where the walk goes [C]."""
    place = tl.arange(0, C)
    row, column = place[:, None], place[None, :]
    high = tl.load(sums + place)
    difference, left = high[:, None] - high[None, :], total - high
    if tl.float32 == DOT:
        low = tl.load(sums + C + place)
        difference += low[:, None] - low[None, :]
        left += total_low - low
    difference = tl.where(row < column, -difference, 0.0) if BACK else tl.where(row > column, difference, 0.0)
    passed, left = tl.exp2(high), tl.exp2(left)
    if BACK:
        passed, left = left, passed
    return tl.exp2(difference), passed, left


@triton.jit
def _walk(
    reader, writer, carried, sums, result, state, checked, count, scale,
    reader_token, writer_token, carried_token, result_token, LENGTH, HEADS, WIDTH, COLUMNS, first, CHECKED,
    partner, partner_token, states, through_states, inside, across,
    C: tl.constexpr, B: tl.constexpr, P: tl.constexpr, W: tl.constexpr, EVEN_B: tl.constexpr, EVEN_P: tl.constexpr,
    SCALAR: tl.constexpr, BACK: tl.constexpr, OUTPUT: tl.constexpr, DECAYS: tl.constexpr, TWICE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):
    """Of every token, from the last one if BACK: result = scale (reader S + what this chunk wrote), then
    S += writer carriedᵀ, each with its decays; P of the carried columns from `first` on, of `count` tokens.

    `state` [B, P] is what the walk begins with; going back it has the factor `scale` in it. Returns the last one and,
    if OUTPUT, whether all went well: the state is bounded, and so are all columns of `checked`. Results after `count`
    tokens are nan then, else zeros.

    If DECAYS, of each token's `partner` times its result: the part through the state (`through_states`) and the part
    through later or earlier tokens of the chunk (`inside`; going forward it is in the former). Going forward, the
    states before each chunk are kept; going back, their products with those after it go to `across`.
    """
    squares = tl.zeros((C, W // 8), tl.float32)
    chunks = tl.cdiv(LENGTH, C)
    row, column = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    if SCALAR:
        total, total_low = _load_total(sums, chunks - 1 if BACK else 0, C, DOT)
    for index in tl.range(0, chunks, num_stages=STAGES):
        chunk = chunks - 1 - index if BACK else index
        start = (chunk * C).to(tl.int64)
        limit, length = tl.minimum(count - chunk * C, C), tl.minimum(LENGTH - chunk * C, C)
        reads = load_tile(reader + start * reader_token, reader_token, limit, 0, WIDTH, C, B, EVEN_B)
        writes = load_turned(writer + start * writer_token, writer_token, limit, 0, WIDTH, C, B, EVEN_B).to(DOT)
        carries = load_tile(carried + start * carried_token, carried_token, limit, first, COLUMNS, C, P, EVEN_P)
        if SCALAR:
            between, passed, left = _load_sums(sums + chunk.to(tl.int64) * (2 * C), total, total_low, C, BACK, DOT)
            whole = tl.exp2(total)
            # Ahead, because Triton does not load single numbers ahead.
            following = tl.maximum(chunk - 1, 0) if BACK else tl.minimum(chunk + 1, chunks - 1)
            total, total_low = _load_total(sums, following, C, DOT)
        if OUTPUT and W > P:
            seen = load_tile(checked + start * carried_token, carried_token, limit, 0, CHECKED, C, W, EVEN_P)
            squares += _squares_by_eight(seen, C, W)
        reads, carries = reads.to(DOT), carries.to(DOT)

        scores = tl.dot(reads, writes, input_precision=PRECISION)
        scores = tl.where(row <= column if BACK else row >= column, scores, 0.0)
        found = tl.dot(reads, state.to(DOT), input_precision=PRECISION)
        if SCALAR:
            scores = scores * between
            found = found * passed[:, None]
        if BACK:
            scores = scores * scale
        if DECAYS:
            own = load_tile(partner + start * partner_token, partner_token, limit, first, COLUMNS, C, P, EVEN_P)
            through = tl.sum(own.to(tl.float32) * found, 1)
            if TWICE:
                flipped = load_turned(
                    carried + start * carried_token, carried_token, limit, first, COLUMNS, C, P, EVEN_P
                ).to(DOT)
            else:
                flipped = tl.trans(carries)
            flow = tl.dot(own.to(DOT), flipped, input_precision=PRECISION)
            flow = tl.sum(tl.where(row < column if BACK else row > column, flow * scores, 0.0), 1)
            here = chunk.to(tl.int64)
            tokens = start + tl.arange(0, C)
            if BACK:
                before = load_state(states + here * (B * W), 0, first, W, B, P).to(tl.float32)
                tl.store(across + here, tl.sum(tl.sum(before * state * whole, 1), 0))
                tl.store(through_states + tokens, through, mask=tokens < LENGTH)
                tl.store(inside + tokens, flow, mask=tokens < LENGTH)
            else:
                store_state(states + here * (B * W), state, 0, first, W, B, P)
                tl.store(through_states + tokens, (through + flow) * scale, mask=tokens < LENGTH)
        found = tl.dot(scores.to(DOT), carries, found, input_precision=PRECISION)
        if not BACK:
            found = found * scale
        if OUTPUT:
            found = tl.where(row < limit, found, float("nan"))
        store_tile(result + start * result_token, found, result_token, length, first, COLUMNS, C, P, EVEN_P)
        # Last, because then the next chunk does not wait for it.
        if SCALAR:
            carries = (carries.to(tl.float32) * (left * scale if BACK else left)[:, None]).to(DOT)
            state = tl.dot(writes, carries, state * whole, input_precision=PRECISION)
        elif BACK:
            state += tl.dot(writes, carries, input_precision=PRECISION) * scale
        else:
            state = tl.dot(writes, carries, state, input_precision=PRECISION)
    # What is not finite stays in the state, whatever it is multiplied by.
    unsound = tl.sum(tl.sum(tl.where(tl.abs(state) < LARGEST, 0.0, 1.0), 1), 0)
    if W > P:
        unsound += tl.sum(tl.sum(squares, 1), 0) * 0.0
    return state, unsound == 0.0


@triton.jit
def _squares_by_eight(x, C: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of the squares of eight columns [C, BLOCK / 8], which are one thread's: float32."""
    wide = tl.reshape(x.to(tl.float32), (C, BLOCK // 8, 8))
    return tl.sum(wide * wide, 2)


@triton.jit
def _squares(x):
    """Of each row, summed: [rows] float32."""
    wide = x.to(tl.float32)
    return tl.sum(wide * wide, 1)


@triton.jit
def _sound_tokens(
    k, v, log_decay, k_token, v_token, LENGTH, HEADS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, EVEN_K: tl.constexpr, EVEN_V: tl.constexpr,
    SCALAR: tl.constexpr,
):
    """How many tokens precede the first with a non-finite sum of squares."""
    sound = LENGTH
    for index in tl.range(0, tl.cdiv(LENGTH, C), num_stages=1):
        start, limit = tl.cast(index * C, tl.int64), tl.minimum(LENGTH - index * C, C)
        squares = _squares(load_tile(k + start * k_token, k_token, limit, 0, KEY, C, BK, EVEN_K))
        squares += _squares(load_tile(v + start * v_token, v_token, limit, 0, VALUE, C, BV, EVEN_V))
        if SCALAR:
            decay = load_log_decay(log_decay + start * HEADS, HEADS, limit, C)
            squares += decay * decay
        damaged = first_row(squares * 0.0 != 0.0, C)
        sound = tl.where(damaged < C, tl.minimum(sound, index * C + damaged), sound)
    return sound


@triton.jit
def _load_boundary(boundary, first, KEY, VALUE, BK: tl.constexpr, BV: tl.constexpr, BOUNDED: tl.constexpr,
                   FLIP: tl.constexpr):
    """[BK, BV] of a state [KEY, VALUE] in float32 from value column `first` on, zeros unless BOUNDED. If FLIP
    transposed, from key `first` on."""
    if FLIP:
        key, value = first + tl.arange(0, BK)[None, :], tl.arange(0, BV)[:, None]
        state = tl.zeros((BV, BK), tl.float32)
    else:
        key, value = tl.arange(0, BK)[:, None], first + tl.arange(0, BV)[None, :]
        state = tl.zeros((BK, BV), tl.float32)
    if BOUNDED:
        state += tl.load(boundary + key * VALUE + value, mask=(key < KEY) & (value < VALUE), other=0.0).to(tl.float32)
    return state


@triton.jit
def _store_boundary(boundary, state, first, KEY, VALUE, BK: tl.constexpr, PV: tl.constexpr):
    key, value = tl.arange(0, BK)[:, None], first + tl.arange(0, PV)[None, :]
    tl.store(boundary + key * VALUE + value, state, mask=(key < KEY) & (value < VALUE))


@triton.jit(do_not_specialize=COUNTS)
def fused_outputs(
    q, k, v, log_decay, sums, boundary, out, after, sound, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, LENGTH, HEADS, KEY, VALUE,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PV: tl.constexpr, EVEN_K: tl.constexpr, EVEN_V: tl.constexpr,
    SCALAR: tl.constexpr, BOUNDED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):
    """Output and final state of PV value columns, and how many tokens are sound.

    That all are is assumed first. Where the sums of squares say otherwise the walk is done again, up to the first one
    that is not.
    """
    parts: tl.constexpr = BV // PV
    row, first = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts * PV
    batch, head = row // HEADS, row % HEADS
    token = batch * LENGTH * HEADS + head
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    out += token * VALUE
    if SCALAR:
        log_decay += token
        sums += row * tl.cdiv(LENGTH, C) * (2 * C)
    if BOUNDED:
        boundary += row * KEY * VALUE
    count, again = LENGTH, 1
    while again > 0:
        state = _load_boundary(boundary, first, KEY, VALUE, BK, PV, BOUNDED, False)
        state, all_sound = _walk(
            q, k, v, sums, out, state, v, count, scale,
            q_token, k_token, v_token, HEADS * VALUE, LENGTH, HEADS, KEY, VALUE, first, VALUE,
            None, 0, None, None, None, None,
            C, BK, PV, BV, EVEN_K, EVEN_V, SCALAR, False, True, False, False, DOT, PRECISION, STAGES,
        )
        again = 0
        if (count == LENGTH) & (not all_sound):
            count = _sound_tokens(
                k, v, log_decay, k_token, v_token, LENGTH, HEADS, KEY, VALUE, C, BK, BV, EVEN_K, EVEN_V, SCALAR
            )
            again = (count < LENGTH).to(tl.int32)
            tl.debug_barrier()
        state += tl.where(count < LENGTH, float("nan"), 0.0)
        _store_boundary(after + row * KEY * VALUE, state, first, KEY, VALUE, BK, PV)
    tl.store(sound + row, count)


@triton.jit(do_not_specialize=(*COUNTS, "ROWS"))
def fused_gradients(
    q, k, v, sums, boundary, after_grad, sound, out_grad, q_grad, k_grad, v_grad, state_grad,
    states, read, written, inside, across, scale,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, o_batch, o_token, o_head,
    LENGTH, HEADS, KEY, VALUE, ROWS,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PK: tl.constexpr, PV: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, SCALAR: tl.constexpr, BOUNDED: tl.constexpr, BOUNDED_AFTER: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, TWICE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Three walks, by programs of their own, PK or PV columns each: if QUERIES one forward for dq; if KEYS two back,
    for dk, and for dv and the initial state's gradient. With decays, what `decay_gradients` needs too, of each part of
    the keys' columns; then the first walk has to end, and leave its `states`, before the others begin."""
    key_parts: tl.constexpr = BK // PK
    back: tl.constexpr = key_parts + BV // PV if KEYS else 0
    parts: tl.constexpr = back + (key_parts if QUERIES else 0)
    row, part = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts
    batch, head = row // HEADS, row % HEADS
    token = batch * LENGTH * HEADS + head
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    out_grad += batch * o_batch + head * o_head
    count = tl.load(sound + row)
    if SCALAR:
        sums += row * tl.cdiv(LENGTH, C) * (2 * C)
        states += row * tl.cdiv(LENGTH, C) * (BV * BK)
    if BOUNDED:
        boundary += row * KEY * VALUE
    if BOUNDED_AFTER:
        after_grad += row * KEY * VALUE
    if KEYS:
        if part < key_parts:
            first = part * PK
            if SCALAR:
                written += (part * ROWS + row) * LENGTH
                inside += (part * ROWS + row) * LENGTH
                across += (part * ROWS + row) * tl.cdiv(LENGTH, C)
            state = _load_boundary(after_grad, first, KEY, VALUE, PK, BV, BOUNDED_AFTER, True)
            _walk(
                v, out_grad, q, sums, k_grad + token * KEY, state, None, count, scale,
                v_token, o_token, q_token, HEADS * KEY, LENGTH, HEADS, VALUE, KEY, first, 0,
                k, k_token, states, written, inside, across,
                C, BV, PK, BK, EVEN_V, EVEN_K, SCALAR, True, False, SCALAR, TWICE, DOT, PRECISION, STAGES,
            )
        elif part < back:
            first = (part - key_parts) * PV
            state = _load_boundary(after_grad, first, KEY, VALUE, BK, PV, BOUNDED_AFTER, False)
            state, _ = _walk(
                k, q, out_grad, sums, v_grad + token * VALUE, state, None, count, scale,
                k_token, q_token, o_token, HEADS * VALUE, LENGTH, HEADS, KEY, VALUE, first, 0,
                None, 0, None, None, None, None,
                C, BK, PV, BV, EVEN_K, EVEN_V, SCALAR, True, False, False, False, DOT, PRECISION, STAGES,
            )
            _store_boundary(state_grad + row * KEY * VALUE, state, first, KEY, VALUE, BK, PV)
    if QUERIES and part >= back:
        first = (part - back) * PK
        if SCALAR:
            read += ((part - back) * ROWS + row) * LENGTH
        state = _load_boundary(boundary, first, KEY, VALUE, PK, BV, BOUNDED, True)
        _walk(
            out_grad, v, k, sums, q_grad + token * KEY, state, None, count, scale,
            o_token, v_token, k_token, HEADS * KEY, LENGTH, HEADS, VALUE, KEY, first, 0,
            q, q_token, states, read, None, None,
            C, BV, PK, BK, EVEN_V, EVEN_K, SCALAR, False, False, SCALAR, TWICE, DOT, PRECISION, STAGES,
        )


@triton.jit(do_not_specialize=(*COUNTS, "ROWS"))
def decay_gradients(
    read, written, inside, across, decay_grad, LENGTH, HEADS, ROWS,
    C: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
):
    """Of CHUNKS chunks of a sequence, from what the walks found, in PARTS: of each token what it reads, what later
    chunks read of it (`written`) and later tokens of its own chunk (`inside`); of each chunk what passes it (`across`).

    A log-decay stands between all that is read from its token on and all that is written before it.
    """
    groups = tl.cdiv(LENGTH, C * CHUNKS)
    row, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    batch, head = row // HEADS, row % HEADS
    chunk, chunks = group * CHUNKS + tl.arange(0, CHUNKS)[:, None], tl.cdiv(LENGTH, C)
    token = chunk * C + tl.arange(0, C)[None, :]
    after, before = tl.zeros((CHUNKS, C), tl.float32), tl.zeros((CHUNKS, C), tl.float32)
    whole = tl.zeros((CHUNKS, 1), tl.float32)
    for part in tl.static_range(PARTS):
        here = part * ROWS + row
        place, known = here * LENGTH + token, token < LENGTH
        after += tl.load(read + place, mask=known, other=0.0) - tl.load(inside + place, mask=known, other=0.0)
        before += tl.load(written + place, mask=known, other=0.0)
        whole += tl.load(across + here * chunks + chunk, mask=chunk < chunks, other=0.0)
    grad = tl.cumsum(after, 1, reverse=True) + (tl.cumsum(before, 1) - before) + whole
    decay_grad += (batch * LENGTH + token) * HEADS + head
    tl.store(decay_grad, grad.to(decay_grad.dtype.element_ty), mask=token < LENGTH)
