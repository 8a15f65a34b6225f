"""What the Triton kernels of linear attention share: sums of log-decays, decays, scores of a chunk."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.delta_rule.tiles import ZERO_BELOW, load_tile

# fmt: off

@triton.jit
def load_decays(pointer, stride, limit, first, width, C: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """[C, BLOCK] log-decays of channels in float32, at least ZERO_BELOW; nan stays."""
    x = load_tile(pointer, stride, limit, first, width, C, BLOCK, EVEN).to(tl.float32)
    return tl.where(x < ZERO_BELOW, ZERO_BELOW, x)


@triton.jit
def load_bonus(bonus, first, width, BLOCK: tl.constexpr):
    """[1, BLOCK] float32."""
    column = first + tl.arange(0, BLOCK)
    return tl.load(bonus + column, mask=column < width, other=0.0).to(tl.float32)[None, :]


@triton.jit
def before_read(C: tl.constexpr, BONUS: tl.constexpr):
    """[C, C]: the row's token reads a state that the column's log-decay has decayed; with a bonus not its own."""
    row, column = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    return column < row if BONUS else column <= row


@triton.jit
def after_write(C: tl.constexpr):
    """[C, C]: what the row's token writes is decayed by the column's log-decay before the chunk ends."""
    return tl.arange(0, C)[None, :] > tl.arange(0, C)[:, None]


@triton.jit
def to_middle(size, C: tl.constexpr, BONUS: tl.constexpr):
    """[C, C]: the column's log-decay lies between the row's token and the middle of its 2 * size tokens.

    From the middle to the reading token for the upper half, from the writing token to the middle for the lower.
    """
    row, column = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    start = row & -size
    upper = before_read(C, BONUS) & (column >= start)
    lower = (column > row) & (column < start + size)
    return tl.where(upper_half(size, C), upper, lower)


@triton.jit
def upper_half(size, C: tl.constexpr):
    """[C, 1]: the token is in the upper half of its 2 * size tokens; size is a power of two."""
    return (tl.arange(0, C)[:, None] & size) != 0


@triton.jit
def across_middle(size, C: tl.constexpr):
    """[C, C]: the tokens are in different halves of the same 2 * size."""
    apart = tl.arange(0, C)[:, None] ^ tl.arange(0, C)[None, :]
    return (apart >= size) & (apart < 2 * size)


@triton.jit
def summed(mask, x, TERMS: tl.constexpr):
    """mask x, of float32 x: in so many bfloat16 terms, or with TERMS = 0 in three of tf32."""
    if TERMS == 0:
        total = tl.dot(mask.to(tl.float32), x, input_precision="tf32x3")
    else:
        weights, high = mask.to(tl.bfloat16), x.to(tl.bfloat16)
        total = tl.dot(weights, high)
        if TERMS == 2:
            total = tl.dot(weights, (x - high.to(tl.float32)).to(tl.bfloat16), total)
    return total


@triton.jit
def head_decays(log_decay, C: tl.constexpr, BONUS: tl.constexpr):
    """From a written token to a later reading one [C, C], from the start to the reader [C], from the writer to the end
    [C], of the whole chunk []. Sums in float64, kept as two float32 numbers."""
    wide = log_decay.to(tl.float64)
    written = tl.cumsum(wide, 0)
    whole = tl.sum(wide, 0)
    read = written - wide if BONUS else written
    high, read_high = written.to(tl.float32), read.to(tl.float32)
    low, read_low = (written - high.to(tl.float64)).to(tl.float32), (read - read_high.to(tl.float64)).to(tl.float32)
    below = tl.arange(0, C)[:, None] > tl.arange(0, C)[None, :]
    difference = (read_high[:, None] - high[None, :]) + (read_low[:, None] - low[None, :])
    between = tl.where(below, tl.exp(tl.where(below, difference, 0.0)), 0.0)
    return between, tl.exp(read_high), tl.exp((whole - written).to(tl.float32)), tl.exp(whole.to(tl.float32))


@triton.jit
def own_scores(query, key, bonus, first, KEY, PK: tl.constexpr, BONUS: tl.constexpr):
    """[C]: the part of these channels in each token's score with itself."""
    product = query.to(tl.float32) * key.to(tl.float32)
    if BONUS:
        product = product * load_bonus(bonus, first, KEY, PK)
    return tl.sum(product, 1)


@triton.jit
def channel_scores(query, key, log_decay, C: tl.constexpr, BONUS: tl.constexpr, DOT: tl.constexpr,
                   PRECISION: tl.constexpr, TERMS: tl.constexpr):
    """[C, C]: the part of these channels in the scores of earlier tokens, each channel with its own decay."""
    scores = tl.zeros((C, C), tl.float32)
    size = 1
    while size < C:
        moved = tl.where(upper_half(size, C), query, key).to(tl.float32)
        moved = (moved * tl.exp(summed(to_middle(size, C, BONUS), log_decay, TERMS))).to(DOT)
        step = tl.dot(moved, tl.trans(moved), input_precision=PRECISION)
        scores += tl.where(across_middle(size, C), step, 0.0)
        size *= 2
    scores = tl.where(tl.arange(0, C)[:, None] > tl.arange(0, C)[None, :], scores, 0.0)
    return scores


@triton.jit
def on_diagonal(x, C: tl.constexpr):
    """[C] as a diagonal matrix."""
    return tl.where(tl.arange(0, C)[:, None] == tl.arange(0, C)[None, :], x[:, None], 0.0)
