"""The Triton kernel that makes a chunk's gradients after the walks (README.md)."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.delta_rule.tiles import WALKED, load_kept, load_rows, load_tile, locate, store_tile

# fmt: off

@triton.jit
def _halves(pointer, stride, limit, width, C: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
            EVEN: tl.constexpr):
    """The first and the other columns of a tile, in float32."""
    x = load_tile(pointer, stride, limit, 0, width, C, HALF, EVEN).to(tl.float32)
    y = x
    if BLOCK > HALF:
        y = load_tile(pointer, stride, limit, HALF, width, C, HALF, EVEN).to(tl.float32)
    return x, y


@triton.jit
def _load_halves(pointer, stride, limit, width, C: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
                 EVEN: tl.constexpr, NORMALISE: tl.constexpr, EPS: tl.constexpr, DOT: tl.constexpr):
    """Halves of a tile for products, of unit length if asked for, and what its rows [C] are multiplied with for it."""
    x, y = _halves(pointer, stride, limit, width, C, BLOCK, HALF, EVEN)
    factor = tl.full((C,), 1.0, tl.float32)
    if NORMALISE:
        squares = tl.sum(x * x, 1)
        if BLOCK > HALF:
            squares += tl.sum(y * y, 1)
        factor = 1.0 / tl.sqrt(squares + EPS)
        x, y = x * factor[:, None], y * factor[:, None]
    return x.to(DOT), y.to(DOT), factor


@triton.jit
def _store_halves(pointer, stride, grad, more, x, x_stride, factor, limit, length, width, C: tl.constexpr,
                  BLOCK: tl.constexpr, HALF: tl.constexpr, EVEN: tl.constexpr, NORMALISE: tl.constexpr):
    """Of a tile's gradient by halves, first through the length that its rows were divided by."""
    if NORMALISE:
        unit, more_unit = _halves(x, x_stride, limit, width, C, BLOCK, HALF, EVEN)
        unit, more_unit = unit * factor[:, None], more_unit * factor[:, None]
        along = tl.sum(unit * grad, 1)
        if BLOCK > HALF:
            along += tl.sum(more_unit * more, 1)
        grad = factor[:, None] * (grad - unit * along[:, None])
        more = factor[:, None] * (more - more_unit * along[:, None])
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
def _query_grad(read, query, key, weights, cumulative_grad, from_start, GATED: tl.constexpr, APART: tl.constexpr,
                PRECISION: tl.constexpr):
    """Of HALF columns, from what dO reads of the state; and what the cumulative decays get of it."""
    if GATED or APART:
        read = read * from_start[:, None]
    if GATED:
        cumulative_grad += tl.sum(query.to(tl.float32) * read, 1)
    return tl.dot(weights, key, read, input_precision=PRECISION), cumulative_grad


@triton.jit
def _key_grad(erased, query, key, weights, both, cumulative_grad, from_start, GATED: tl.constexpr,
              APART: tl.constexpr, PRECISION: tl.constexpr):
    """Of HALF columns, from what dV erases of the state, without what is carried to the next chunk; likewise."""
    if GATED or APART:
        erased = erased * from_start[:, None]
    if GATED:
        cumulative_grad += tl.sum(key.to(tl.float32) * erased, 1)
    grad = tl.dot(weights, query, erased, input_precision=PRECISION)
    return tl.dot(both, key, grad, input_precision=PRECISION), cumulative_grad


@triton.jit(do_not_specialize=WALKED)
def walk_gradients(
    q, k, beta, sums, documents, sound, before, after_grad, residual, out_grad, v_grad,
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

    query, more_query, q_factor = _load_halves(q, q_token, limit, KEY, C, BK, PART, EVEN_K, NORMALISE, EPS, DOT)
    key, more_key, k_factor = _load_halves(k, k_token, limit, KEY, C, BK, PART, EVEN_K, NORMALISE, EPS, DOT)
    strength = tl.load(beta + gates + rows * HEADS, mask=rows < limit, other=0.0).to(tl.float32)
    written = strength[None, :]
    from_start, cumulative_grad = strength, strength  # where there is nothing to keep, for arguments that are not read
    if GATED or APART:
        between, from_start, to_end, whole = load_kept(sums, documents, at, batch, start, LENGTH, C, DOT, APART)

    # Each of these is read once, and stays in shared memory.
    asked = load_tile(out_grad, o_token, limit, 0, VALUE, C, BV, EVEN_V).to(DOT)
    sent = load_tile(v_grad, HEADS * VALUE, limit, 0, VALUE, C, BV, EVEN_V).to(DOT)
    rest = load_rows(residual, BV, C)

    # Within the chunk first, one matrix after the other.
    grad = tl.dot(asked, rest, input_precision=PRECISION)
    grad = tl.where(below | on, grad * scale, 0.0)
    if GATED or APART:
        grad = grad * between
    flow = grad * _scores(query, more_query, key, more_key, PRECISION, BK, PART)
    weights = (grad * written).to(DOT)
    grad = tl.dot(sent, rest, input_precision=PRECISION)
    grad = tl.where(below, -grad, 0.0)
    if GATED or APART:
        grad = grad * between
    flow += grad * _scores(key, more_key, key, more_key, PRECISION, BK, PART)
    strength_grad = tl.sum(flow, 0)
    if GATED:
        flow = tl.where(below, flow * written, 0.0)
        cumulative_grad = tl.sum(flow, 1) - tl.sum(flow, 0)
    grad = grad * written
    both = (grad + tl.trans(grad)).to(DOT)

    read = tl.dot(asked, _state_half(before, 0, BV, BK, PART), input_precision=PRECISION)
    grad, cumulative_grad = _query_grad(read * scale, query, key, weights, cumulative_grad, from_start, GATED, APART,
                                        PRECISION)
    more = grad
    if BK > PART:
        read = tl.dot(asked, _state_half(before, PART, BV, BK, PART), input_precision=PRECISION)
        more, cumulative_grad = _query_grad(read * scale, more_query, more_key, weights, cumulative_grad, from_start,
                                            GATED, APART, PRECISION)
    _store_halves(q_grad + gates * KEY, HEADS * KEY, grad, more, q, q_token, q_factor, limit, length, KEY, C, BK,
                  PART, EVEN_K, NORMALISE)

    weights = tl.trans(weights)
    erased = tl.dot(sent, _state_half(before, 0, BV, BK, PART), input_precision=PRECISION)
    grad, cumulative_grad = _key_grad(-erased, query, key, weights, both, cumulative_grad, from_start, GATED, APART,
                                      PRECISION)
    carried, whole_grad = _carried(rest, before, after_grad, 0, 0.0, BK, PART, BV, GATED, PRECISION)
    if GATED or APART:
        carried = carried * to_end[:, None]
    moved = tl.sum(key.to(tl.float32) * carried, 1)
    grad += carried * strength[:, None]
    more = grad
    if BK > PART:
        erased = tl.dot(sent, _state_half(before, PART, BV, BK, PART), input_precision=PRECISION)
        more, cumulative_grad = _key_grad(-erased, more_query, more_key, weights, both, cumulative_grad, from_start,
                                          GATED, APART, PRECISION)
        carried, whole_grad = _carried(rest, before, after_grad, PART, whole_grad, BK, PART, BV, GATED, PRECISION)
        if GATED or APART:
            carried = carried * to_end[:, None]
        moved += tl.sum(more_key.to(tl.float32) * carried, 1)
        more += carried * strength[:, None]
    _store_halves(k_grad + gates * KEY, HEADS * KEY, grad, more, k, k_token, k_factor, limit, length, KEY, C, BK,
                  PART, EVEN_K, NORMALISE)
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
