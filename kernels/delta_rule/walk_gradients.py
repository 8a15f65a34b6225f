"""The Triton kernel that makes a chunk's gradients after the walks (README.md)."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.delta_rule.tiles import FACTORS, load_kept, load_rows, load_tile, locate, store_tile

# fmt: off

@triton.jit
def _half(pointer, stride, limit, width, column, C: tl.constexpr, HALF: tl.constexpr, EVEN: tl.constexpr):
    """HALF columns of a tile in float32, for what is computed number by number.

    Read where it is needed: what is read for products would take registers until then, and what is read in the same
    way is, for the compiler, read once.
    """
    row, column = tl.arange(0, C)[:, None], column + tl.arange(0, HALF)[None, :]
    mask = row < limit
    if not EVEN:
        mask = mask & (column < width)
    return tl.load(pointer + row * stride + column, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)


@triton.jit
def _store_halves(pointer, stride, grad, more, x, y, factor, scale, length, width, C: tl.constexpr,
                  BLOCK: tl.constexpr, HALF: tl.constexpr, EVEN: tl.constexpr, NORMALISE: tl.constexpr):
    """Of a tile's gradient by halves, but for the scale, first through the length that the rows of [x y] are divided
    by."""
    if NORMALISE:
        along = tl.sum(x * grad, 1)
        if BLOCK > HALF:
            along += tl.sum(y * more, 1)
        along = along * factor * factor
        factor = factor * scale
        grad = factor[:, None] * (grad - x * along[:, None])
        more = factor[:, None] * (more - y * along[:, None])
    else:
        grad, more = grad * scale, more * scale
    store_tile(pointer, grad, stride, length, 0, width, C, HALF, EVEN)
    if BLOCK > HALF:
        store_tile(pointer, more, stride, length, HALF, width, C, HALF, EVEN)


@triton.jit
def _scores(x, more, y, other, PRECISION: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr):
    """[x more] [y other]ᵀ"""
    product = tl.dot(x, tl.trans(y), input_precision=PRECISION)
    if BLOCK > HALF:
        product = tl.dot(more, tl.trans(other), product, input_precision=PRECISION)
    return product


@triton.jit
def _state_half(states, column, BV: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr):
    """HALF columns [BV, HALF] of a state in memory, of BLOCK columns."""
    return tl.load(states + tl.arange(0, BV)[:, None] * BLOCK + column + tl.arange(0, HALF)[None, :])


@triton.jit
def _carried(residual, before, after_grad, column, whole_grad, BLOCK: tl.constexpr, HALF: tl.constexpr,
             BV: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr):
    """R [BV, C] transposed times HALF columns of dS⁺; and what is added to Σ S ∘ dS⁺."""
    grad = _state_half(after_grad, column, BV, BLOCK, HALF)
    if GATED:
        products = _state_half(before, column, BV, BLOCK, HALF).to(tl.float32) * grad.to(tl.float32)
        whole_grad += tl.sum(tl.reshape(products, (BV * HALF,), can_reorder=True), 0)
    return tl.dot(tl.trans(residual), grad, input_precision=PRECISION), whole_grad


@triton.jit
def _query_grad(read, x, key, weights, share, from_start, GATED: tl.constexpr, APART: tl.constexpr,
                PRECISION: tl.constexpr):
    """Of HALF columns, from what dO reads of the state; and what the cumulative decays get of it, but for lengths."""
    if GATED or APART:
        read = read * from_start[:, None]
    if GATED:
        share += tl.sum(x * read, 1)
    return tl.dot(weights, key, read, input_precision=PRECISION), share


@triton.jit
def _key_grad(erased, x, query, key, weights, both, share, from_start, GATED: tl.constexpr, APART: tl.constexpr,
              PRECISION: tl.constexpr):
    """Of HALF columns, from what dV erases of the state, without what is carried to the next chunk; likewise."""
    if GATED or APART:
        erased = erased * from_start[:, None]
    if GATED:
        share += tl.sum(x * erased, 1)
    grad = tl.dot(weights, query, erased, input_precision=PRECISION)
    return tl.dot(both, key, grad, input_precision=PRECISION), share


@triton.jit(do_not_specialize=("LENGTH", "CHUNKS"))
def walk_gradients(
    q, k, beta, factors, sums, documents, sound, before, after_grad, residual, out_grad, v_grad,
    q_grad, k_grad, beta_grad, log_decay_grad, scale,
    q_batch, q_token: tl.constexpr, q_head, k_batch, k_token: tl.constexpr, k_head,
    o_batch, o_token: tl.constexpr, o_head,
    LENGTH, HEADS: tl.constexpr, CHUNKS, KEY: tl.constexpr, VALUE: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PART: tl.constexpr, EVEN_K: tl.constexpr,
    EVEN_V: tl.constexpr, GATED: tl.constexpr, APART: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):
    """The other gradients of a chunk, from its first state, the gradient of its last one, R and dV.

    PART key columns at once, all of them or half, so that warps have room for what they add up.
    """
    batch, chunk, head, row = locate(tl.program_id(0), CHUNKS, HEADS)
    start = chunk * C
    length = tl.minimum(LENGTH - start, C)
    at = row * CHUNKS + chunk
    limit = tl.minimum(length, tl.load(sound + at))
    q += batch * q_batch + start * q_token + head * q_head
    k += batch * k_batch + start * k_token + head * k_head
    out_grad += batch * o_batch + start * o_token + head * o_head
    gates = (batch * LENGTH + start) * HEADS + head
    v_grad += gates * VALUE
    before += at * (BV * BK)
    after_grad += at * (BV * BK)
    residual += at * (BV * C)
    rows = tl.arange(0, C)
    below, on = rows[:, None] > rows[None, :], rows[:, None] == rows[None, :]

    # As they are in memory: their lengths are in what they are multiplied with.
    query = load_tile(q, q_token, limit, 0, KEY, C, PART, EVEN_K).to(DOT)
    key = load_tile(k, k_token, limit, 0, KEY, C, PART, EVEN_K).to(DOT)
    more_query, more_key = query, key
    if BK > PART:
        more_query = load_tile(q, q_token, limit, PART, KEY, C, PART, EVEN_K).to(DOT)
        more_key = load_tile(k, k_token, limit, PART, KEY, C, PART, EVEN_K).to(DOT)
    factors += at * (FACTORS * C) + rows
    key_length, query_length = tl.load(factors + 3 * C), tl.load(factors + 4 * C)
    strength = tl.load(beta + gates + rows * HEADS, mask=rows < limit, other=0.0).to(tl.float32)
    from_start = strength  # where there is nothing to keep, for arguments that are not read
    if GATED or APART:
        between, from_start, to_end, whole = load_kept(sums, documents, at, batch, start, LENGTH, C, DOT, APART)
    # Each of these is read once, and stays in shared memory.
    asked = load_tile(out_grad, o_token, limit, 0, VALUE, C, BV, EVEN_V).to(DOT)
    sent = load_tile(v_grad, HEADS * VALUE, limit, 0, VALUE, C, BV, EVEN_V).to(DOT)
    rest = load_rows(residual, BV, C)

    # Within the chunk first, one matrix after the other.
    grad = tl.dot(asked, rest, input_precision=PRECISION)
    if GATED or APART:
        grad *= between
    grad = tl.where(below | on, grad, 0.0)
    of_keys = (grad * (strength * key_length)[None, :]).to(DOT)
    grad = grad * (query_length * scale)[:, None]
    of_queries = (grad * strength[None, :]).to(DOT)
    flow = grad * _scores(query, more_query, key, more_key, PRECISION, BK, PART)
    grad = -tl.dot(sent, rest, input_precision=PRECISION)
    if GATED or APART:
        grad *= between
    grad = tl.where(below, grad, 0.0)
    flow += grad * key_length[:, None] * _scores(key, more_key, key, more_key, PRECISION, BK, PART)
    if GATED:  # a token's flow to itself passes no decay
        own = tl.sum(tl.where(on, flow, 0.0), 1)
        flow = tl.where(below, flow, 0.0)
    strength_grad = tl.sum(flow, 0)
    if GATED:
        cumulative_grad = tl.sum(flow * (strength * key_length)[None, :], 1) - strength_grad * strength * key_length
        strength_grad += own
    strength_grad *= key_length
    grad = grad * strength[None, :]
    # Rounded before they are added, where only one of two is not zero: half the bytes are transposed.
    both = (grad * key_length[None, :]).to(DOT) + tl.trans((grad * key_length[:, None]).to(DOT))

    share = tl.zeros((C,), tl.float32)
    read = tl.dot(asked, _state_half(before, 0, BV, BK, PART), input_precision=PRECISION)
    x = _half(q, q_token, limit, KEY, 0, C, PART, EVEN_K)
    grad, share = _query_grad(read, x, key, of_keys, share, from_start, GATED, APART, PRECISION)
    more, y = grad, x
    if BK > PART:
        read = tl.dot(asked, _state_half(before, PART, BV, BK, PART), input_precision=PRECISION)
        y = _half(q, q_token, limit, KEY, PART, C, PART, EVEN_K)
        more, share = _query_grad(read, y, more_key, of_keys, share, from_start, GATED, APART, PRECISION)
    if GATED:
        cumulative_grad += share * query_length * scale
    _store_halves(q_grad + gates * KEY, HEADS * KEY, grad, more, x, y, query_length, scale, length, KEY, C, BK, PART,
                  EVEN_K, NORMALISE)

    of_queries = tl.trans(of_queries)
    share = tl.zeros((C,), tl.float32)
    erased = tl.dot(sent, _state_half(before, 0, BV, BK, PART), input_precision=PRECISION)
    x = _half(k, k_token, limit, KEY, 0, C, PART, EVEN_K)
    grad, share = _key_grad(-erased, x, query, key, of_queries, both, share, from_start, GATED, APART, PRECISION)
    carried, whole_grad = _carried(rest, before, after_grad, 0, 0.0, BK, PART, BV, GATED, PRECISION)
    writes = strength
    if GATED or APART:
        writes *= to_end
    moved = tl.sum(x * carried, 1)
    grad += carried * writes[:, None]
    more, y = grad, x
    if BK > PART:
        erased = tl.dot(sent, _state_half(before, PART, BV, BK, PART), input_precision=PRECISION)
        y = _half(k, k_token, limit, KEY, PART, C, PART, EVEN_K)
        more, share = _key_grad(-erased, y, more_query, more_key, of_queries, both, share, from_start, GATED, APART,
                                PRECISION)
        carried, whole_grad = _carried(rest, before, after_grad, PART, whole_grad, BK, PART, BV, GATED, PRECISION)
        moved += tl.sum(y * carried, 1)
        more += carried * writes[:, None]
    moved *= key_length
    if GATED or APART:
        moved *= to_end
    if GATED:
        cumulative_grad += share * key_length
    _store_halves(k_grad + gates * KEY, HEADS * KEY, grad, more, x, y, key_length, 1.0, length, KEY, C, BK, PART,
                  EVEN_K, NORMALISE)
    strength_grad = (strength_grad + moved).to(beta_grad.dtype.element_ty)
    tl.store(beta_grad + gates + rows * HEADS, strength_grad, mask=rows < length)
    if GATED:
        # The last token's own part, to the end of the chunk, is not decayed.
        moved = tl.where(rows < limit - 1, moved * strength, 0.0)
        cumulative_grad -= moved
        decay_grad = tl.cumsum(cumulative_grad, 0, reverse=True) + whole_grad * whole + tl.sum(moved, 0)
        tl.store(
            log_decay_grad + gates + rows * HEADS, decay_grad.to(log_decay_grad.dtype.element_ty), mask=rows < length
        )
