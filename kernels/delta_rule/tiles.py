"""What the Triton kernels of the delta rule share: tiles of operands, decays, the inverse of a chunk's system."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

# Of products' operands.
TRITON_TYPES = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
# Arguments whose value must not make another variant of a kernel.
COUNTS = ("LENGTH", "HEADS", "CHUNKS")
# Of those that walk, where strides and heads are constants (README.md).
WALKED = ("LENGTH", "CHUNKS", "SEGMENTS", "SPAN")
# Factors of a chunk's tokens where sequences are walked through, one after the other in memory: of what a key reads, of
# what it writes, of what a query reads; of unit lengths, a key's and a query's.
FACTORS = tl.constexpr(5)
# Larger entries of a chunk's solution count as overflow; products of two smaller ones and their sums stay finite.
LARGEST = tl.constexpr(1e18)
# exp() of anything below is exactly zero in float32.
ZERO_BELOW = tl.constexpr(-104.0)
LOG2_E = tl.constexpr(1.4426950408889634)


# fmt: off

@triton.jit
def locate(program, CHUNKS, HEADS):
    """Batch, chunk, head and row (batch * heads + head) of a program; heads change fastest, as in memory."""
    head = program % HEADS
    chunk = (program // HEADS) % CHUNKS
    batch = (program // HEADS // CHUNKS).to(tl.int64)
    return batch, chunk, head, batch * HEADS + head


@triton.jit
def load_tile(pointer, stride, limit, first, width, C: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """[C, BLOCK] from column `first`; zeros from row `limit` and column `width` on."""
    row = tl.arange(0, C)[:, None]
    column = first + tl.arange(0, BLOCK)[None, :]
    mask = row < limit
    if not EVEN:
        mask = mask & (column < width)
    return tl.load(pointer + row * stride + column, mask=mask, other=0.0)


@triton.jit
def load_turned(pointer, stride, limit, first, width, C: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """As `load_tile`, but [BLOCK, C]. Of what is transposed after loading Triton loads nothing ahead."""
    row = tl.arange(0, C)[None, :]
    column = first + tl.arange(0, BLOCK)[:, None]
    mask = row < limit
    if not EVEN:
        mask = mask & (column < width)
    return tl.load(pointer + row * stride + column, mask=mask, other=0.0)


@triton.jit
def store_tile(pointer, x, stride, limit, first, width, C: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    row = tl.arange(0, C)[:, None]
    column = first + tl.arange(0, BLOCK)[None, :]
    mask = row < limit
    if not EVEN:
        mask = mask & (column < width)
    tl.store(pointer + row * stride + column, x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_rows(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows of a contiguous matrix."""
    return tl.load(pointer + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def store_rows(pointer, x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    place = pointer + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(place, x.to(pointer.dtype.element_ty))


@triton.jit
def inverse_root(squares, EPS: tl.constexpr):
    """1 / sqrt(squares + eps); nan where the squares overflow."""
    return 1.0 / tl.sqrt(squares + EPS) + squares * 0.0


@triton.jit
def two_terms(x, DOT: tl.constexpr):
    """x for products, and what their rounding leaves of it."""
    high = x.to(DOT)
    return high, (x - high.to(tl.float32)).to(DOT)


@triton.jit
def place_of(tiles, at, OTHERS: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr):
    """Where the tiles [C, C] of chunk `at` begin: an inverse, in two terms unless in float32, and OTHERS."""
    TILES: tl.constexpr = OTHERS + (1 if tl.float32 == DOT else 2)
    return tiles + at * (TILES * C * C)


@triton.jit
def store_inverse(place, x, C: tl.constexpr, DOT: tl.constexpr):
    """For bfloat16's products as a sum of two: where keys come back, its rows nearly cancel what they are multiplied
    with, and one rounding would be most of what is left."""
    high, rest = two_terms(x, DOT)
    store_rows(place, high, C, C)
    if tl.float32 != DOT:
        store_rows(place + C * C, rest, C, C)


@triton.jit
def load_inverse(place, C: tl.constexpr, DOT: tl.constexpr):
    """Both terms, for `two_dot`; in float32 the second one is not looked at."""
    x = load_rows(place, C, C)
    rest = x
    if tl.float32 != DOT:
        rest = load_rows(place + C * C, C, C)
    return x, rest


@triton.jit
def inverse_length(x, EPS: tl.constexpr):
    """1 / sqrt(sum(x²) + eps) of each row: [rows, 1] float32."""
    wide = x.to(tl.float32)
    return inverse_root(tl.sum(wide * wide, 1)[:, None], EPS)


@triton.jit
def load_keys(pointer, stride, limit, width, C: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
              NORMALISE: tl.constexpr, EPS: tl.constexpr, DOT: tl.constexpr):
    """A tile of keys or queries, of unit length if asked for, in the type of the products."""
    x = load_tile(pointer, stride, limit, 0, width, C, BLOCK, EVEN)
    if NORMALISE:
        x = x.to(tl.float32) * inverse_length(x, EPS)
    return x.to(DOT)


@triton.jit
def load_log_decay(pointer, stride, limit, C: tl.constexpr):
    """[C] float32, at least ZERO_BELOW; nan stays."""
    row = tl.arange(0, C)
    x = tl.load(pointer + row * stride, mask=row < limit, other=0.0).to(tl.float32)
    return tl.where(x < ZERO_BELOW, ZERO_BELOW, x)


@triton.jit
def cumulative(log_decay):
    """Sums of the log-decays up to and with each token [C], to base 2, in two float32 numbers.

    They are made in float64, because one strong decay makes them large and the later weak ones small beside them.
    """
    exact = tl.cumsum(log_decay.to(tl.float64), 0) * LOG2_E
    high = exact.to(tl.float32)
    return high, (exact - high.to(tl.float64)).to(tl.float32)


@triton.jit
def at_row(x, row, C: tl.constexpr):
    """One entry of x [C]; 0 for a row that is none."""
    return tl.sum(tl.where(tl.arange(0, C) == row, x, 0.0), 0)


@triton.jit
def store_sums(pointer, high, low, limit, C: tl.constexpr, DOT: tl.constexpr):
    """For `load_decays`, as if the log-decays from row `limit` on were 0."""
    row = tl.arange(0, C)
    tl.store(pointer + row, tl.where(row < limit, high, at_row(high, limit - 1, C)))
    if tl.float32 == DOT:
        tl.store(pointer + C + row, tl.where(row < limit, low, at_row(low, limit - 1, C)))


@triton.jit
def between_tokens(high, low, high_before, low_before, DOT: tl.constexpr):
    """Decays [C, C] from cumulative sums [C, 1] and [1, C]; products in bfloat16 need no second number.

    Above the diagonal they may be infinite: what they are multiplied with is masked afterwards.
    """
    difference = high - high_before
    if tl.float32 == DOT:
        difference += low - low_before
    return tl.exp2(difference)


@triton.jit
def load_decays(sums, at, C: tl.constexpr, DOT: tl.constexpr):
    """Decay between tokens [C, C], from the start [C], to the end [C], of the whole chunk []."""
    pointer = sums + at * (2 * C)
    row = tl.arange(0, C)
    high, last = tl.load(pointer + row), tl.load(pointer + C - 1)
    low, left = high, last - high[:, None]
    if tl.float32 == DOT:
        low = tl.load(pointer + C + row)
        left += tl.load(pointer + 2 * C - 1) - low[:, None]
    between = between_tokens(high[:, None], low[:, None], high[None, :], low[None, :], DOT)
    # Sums of one column each, so that exponentials are made in the columns' layout: fewer bytes are spilled.
    return between, tl.sum(tl.exp2(high[:, None]), 1), tl.sum(tl.exp2(left), 1), tl.exp2(last)


@triton.jit
def one_document(documents, LENGTH, HEADS, CHUNKS, C: tl.constexpr):
    """Whether no document begins in this program's chunk; most are shorter than documents, and such a chunk is computed
    as if there were none. A document's number does not come back, so equal ends are enough."""
    batch, chunk, _, _ = locate(tl.program_id(0), CHUNKS, HEADS)
    documents += batch * LENGTH
    before, last = tl.maximum(chunk * C - 1, 0), tl.minimum(chunk * C + C, LENGTH) - 1
    return tl.load(documents + before) == tl.load(documents + last)


@triton.jit
def load_documents(documents, batch, start, LENGTH, C: tl.constexpr):
    """For `apart`: the document before the chunk [], those of its tokens [C], its last one []."""
    documents += batch * LENGTH + start
    row, last = tl.arange(0, C), tl.minimum(LENGTH - start, C) - 1
    before, end = tl.load(documents - tl.minimum(start, 1)), tl.load(documents + last)
    return before, tl.load(documents + tl.minimum(row, last)), end


@triton.jit
def apart(before, own, end, C: tl.constexpr):
    """What `load_decays` gives where only documents end, in a chunk where one begins: ones within one, zeros between
    two."""
    row = tl.arange(0, C)
    between = tl.where((row[:, None] >= row[None, :]) & (own[:, None] == own[None, :]), 1.0, 0.0)
    return between, tl.where(own == before, 1.0, 0.0), tl.where(own == end, 1.0, 0.0), 0.0


@triton.jit
def load_kept(sums, documents, at, batch, start, LENGTH, C: tl.constexpr, DOT: tl.constexpr, APART: tl.constexpr):
    """Of documents if APART, else of decays."""
    if APART:
        before, own, end = load_documents(documents, batch, start, LENGTH, C)
        between, from_start, to_end, whole = apart(before, own, end, C)
    else:
        between, from_start, to_end, whole = load_decays(sums, at, C, DOT)
    return between, from_start, to_end, whole


@triton.jit
def tile_dot(a, b, FLIP: tl.constexpr, PRECISION: tl.constexpr):
    """a b, computed as (bᵀ aᵀ)ᵀ if FLIP: the layout is transposed, the values are the same."""
    if FLIP:
        product = tl.trans(tl.dot(tl.trans(b), tl.trans(a), input_precision=PRECISION))
    else:
        product = tl.dot(a, b, input_precision=PRECISION)
    return product


@triton.jit
def two_dot(x, rest, y, FLIP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """(x + rest) y of `two_terms`."""
    product = tile_dot(x, y, FLIP, PRECISION)
    if tl.float32 != DOT:
        product += tile_dot(rest, y, FLIP, PRECISION)
    return product


@triton.jit
def bounded(x):
    """Overflow and nan become LARGEST, so that zeros of a mask times them stay zeros."""
    return tl.where(tl.abs(x) < LARGEST, x, LARGEST)


@triton.jit
def first_row(damaged, C: tl.constexpr):
    """The first of the damaged rows [C], C if there is none."""
    return tl.min(tl.where(damaged, tl.arange(0, C), C), 0)


@triton.jit
def nearest(x, PRECISION: tl.constexpr):
    """For products in tf32, which drop 13 bits: half of the last one kept is added, lest all errors point to zero."""
    if PRECISION == "tf32":
        x = (x.to(tl.int32, bitcast=True) + 2**12).to(tl.float32, bitcast=True)
    return x


@triton.jit
def _merge(x, a, row, column, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """Inverted diagonal blocks of twice the size; a is of `nearest`."""
    between = (row // (2 * SIZE) == column // (2 * SIZE)) & (row // SIZE != column // SIZE)
    factor = nearest(x, PRECISION)
    step = nearest(tl.dot(factor, tl.where(between, a, 0.0), input_precision=PRECISION), PRECISION)
    return bounded(x - tl.dot(step, factor, input_precision=PRECISION))


@triton.jit
def unit_lower_inverse(a, C: tl.constexpr, PRECISION: tl.constexpr):
    """(I + a)⁻¹ of a strictly lower triangular a [C, C] in float32, by block forward substitution.

    Two inverted diagonal blocks X₁, X₂ and the block a₂₁ below give -X₂ a₂₁ X₁; with X the diagonal blocks and a' the
    blocks between pairs, X - X a' X for all pairs at once. Blocks to 16 x 16 are computed apart from the rest.
    """
    blocks: tl.constexpr = C // 16
    apart = tl.reshape(a, (blocks, 16, blocks, 16))
    block = tl.arange(0, blocks)
    on_diagonal = block[:, None, None, None] == block[None, None, :, None]
    small = tl.sum(tl.where(on_diagonal, apart, 0.0), 2)
    row, column = tl.arange(0, 16)[None, :, None], tl.arange(0, 16)[None, None, :]
    x = tl.where(row == column, 1.0, 0.0) - tl.where(row // 2 == column // 2, small, 0.0)
    small = nearest(small, PRECISION)
    for level in tl.static_range(1, 4):
        x = _merge(x, small, row, column, 2**level, PRECISION)
    if blocks == 1:
        x = tl.reshape(x, (C, C))
    else:
        x = tl.reshape(tl.where(on_diagonal, x[:, :, None, :], 0.0), (C, C))
        row, column = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
        a = nearest(a, PRECISION)
        for level in tl.static_range(4, 7):
            if 2**level < C:
                x = _merge(x, a, row, column, 2**level, PRECISION)
    return x
