"""Kernels of the fused form; README.md derives them. `offset` is the reference level of each token in base 2."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

# A token's sum of exponentials, relative to its target's, above which the sum is taken again from the token's largest
# logit: e^60, so that sums of products with it stay far from float32's largest number, e^88.
_LIMIT = tl.constexpr(1.1e26)
_LOG_OF_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def target_level_kernel(
    h_ptr, w_ptr, target_ptr, offset_ptr, tokens, dim, vocab, ignore_index, slope, ROWS: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """Offset of each token: its target's logit, times log2(e); inf for ignored ones, nan for impossible ones."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < tokens
    target = tl.load(target_ptr + rows, mask=inside, other=0)
    valid = inside & (target >= 0) & (target < vocab)
    logit = tl.zeros([ROWS], tl.float32)
    for first in range(0, dim, BK):
        k = first + tl.arange(0, BK)
        mask = valid[:, None] & (k < dim)[None, :]
        h = tl.load(h_ptr + rows.to(tl.int64)[:, None] * dim + k[None, :], mask=mask, other=0.0)
        w = tl.load(w_ptr + target[:, None] * dim + k[None, :], mask=mask, other=0.0)
        logit += tl.sum(h.to(tl.float32) * w.to(tl.float32), 1)
    level = tl.where(valid, logit * slope, float("nan"))
    tl.store(offset_ptr + rows, tl.where(target == ignore_index, float("inf"), level), mask=inside)


@triton.jit
def _product(h_desc, w_desc, row, column, dim, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Tile of hidden · weightᵀ [BM, BN]."""
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, dim, BK):
        acc = tl.dot(h_desc.load([row, k]), w_desc.load([column, k]).T, acc, input_precision="ieee")
    return acc


@triton.jit
def _row_sums(partial_ptr, rows, mask, tokens, partials):
    """Sums of the partial sums [partials, tokens] of some tokens."""
    total = tl.zeros(rows.shape, tl.float32)
    for first in range(0, partials, 32):
        part = first + tl.arange(0, 32)
        where = part[:, None] * tokens + rows[None, :]
        total += tl.sum(tl.load(partial_ptr + where, mask=(part < partials)[:, None] & mask[None, :], other=0.0), 0)
    return total


@triton.jit
def _emit(level, p_desc, row, column, vocab, BN: tl.constexpr, PADDED: tl.constexpr):
    """Writes the exponentials of a tile of levels, logits in base 2 less the offset, and returns the sums of rows."""
    p = tl.exp2(level)
    if PADDED:
        p = tl.where((column + tl.arange(0, BN) < vocab)[None, :], p, 0.0)
    p_desc.store([row, column], p.to(p_desc.dtype))
    return tl.sum(p, 1)


@triton.jit
def narrow_kernel(
    h_desc, w_desc, p_desc, offset_ptr, partial_ptr, tokens, vocab, columns, tiles, slope, one,
    BM: tl.constexpr, BN: tl.constexpr, IN_REGISTERS: tl.constexpr,
):  # fmt: skip
    """Exponentials for one block of tokens and one span of the vocabulary; the whole width of hidden in one tile.

    The product of a tile runs while the exponentials of the one before are taken. README.md says what keeps Triton and
    ptxas from waiting for it: every detail of the loop is needed.
    """
    row = tl.program_id(0) * BM
    rows = row + tl.arange(0, BM)
    offset = tl.load(offset_ptr + rows, mask=rows < tokens, other=float("inf"))
    first = tl.program_id(1) * tiles * BN
    last = first + tl.minimum(tiles, tl.cdiv(columns - first, BN)) * BN
    h = h_desc.load([row, 0])
    if IN_REGISTERS:
        h = (h.to(tl.float32) * one).to(h.dtype)
    total = tl.zeros([BM], tl.float32)
    # A product that is waited for, and with it the one that runs.
    tick_a, tick_b = tl.zeros([BM, 16], h.dtype), tl.zeros([16, 16], h.dtype)
    tick = tl.zeros([BM, 16], tl.float32)
    level = tl.full([BM, BN], float("-inf"), tl.float32)
    if IN_REGISTERS:
        running = tl.dot(h, w_desc.load([first, 0]).T, input_precision="ieee")
    else:
        running = tl.dot(tick_a, tl.zeros([16, BN], h.dtype))
    for column in range(first, last, BN):
        ready = column - 2 * BN >= first
        sums = _emit(level, p_desc, row, tl.where(ready, column - 2 * BN, columns), vocab, BN, False)
        total += tl.where(ready, sums, 0.0)
        tick = tl.maximum(tick, tl.dot(tick_a, tick_b))
        level = running * slope - offset[:, None]
        running = tl.dot(h, w_desc.load([column, 0]).T, input_precision="ieee")
    total += tl.sum(tick, 1)
    ready = last - 2 * BN >= first
    sums = _emit(level, p_desc, row, tl.where(ready, last - 2 * BN, columns), vocab, BN, True)
    total += tl.where(ready, sums, 0.0)
    total += _emit(running * slope - offset[:, None], p_desc, row, last - BN, vocab, BN, True)
    tl.store(partial_ptr + tl.program_id(1) * tokens + rows, total, mask=rows < tokens)


@triton.jit
def wide_kernel(
    h_desc, w_desc, p_desc, offset_ptr, partial_ptr, tokens, dim, vocab, slope,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Exponentials for one block of tokens and one of the vocabulary, for any width."""
    row_blocks = tl.cdiv(tokens, BM)
    # Programs that run at the same time share GROUP blocks of tokens, and so most of what they read.
    in_group = GROUP * tl.num_programs(0) // row_blocks
    group = tl.program_id(0) // in_group
    group_size = tl.minimum(row_blocks - group * GROUP, GROUP)
    within = tl.program_id(0) % in_group
    row = (group * GROUP + within % group_size) * BM
    block = within // group_size
    rows = row + tl.arange(0, BM)
    acc = _product(h_desc, w_desc, row, block * BN, dim, BM, BN, BK)
    offset = tl.load(offset_ptr + rows, mask=rows < tokens, other=float("inf"))
    total = _emit(acc * slope - offset[:, None], p_desc, row, block * BN, vocab, BN, True)
    tl.store(partial_ptr + block * tokens + rows, total, mask=rows < tokens)


@triton.jit
def rescue_kernel(
    h_desc, w_desc, p_desc, offset_ptr, partial_ptr, tokens, partials, dim, vocab, columns, slope,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Where a sum left its range, again from the largest logit. Usually there is nothing to do."""
    row = tl.program_id(0) * BM
    rows = row + tl.arange(0, BM)
    inside = rows < tokens
    total = _row_sums(partial_ptr, rows, inside, tokens, partials)
    lost = total > _LIMIT
    if tl.max(lost.to(tl.int32), 0) > 0:
        largest = tl.full([BM], float("-inf"), tl.float32)
        for column in range(0, columns, BN):
            level = _product(h_desc, w_desc, row, column, dim, BM, BN, BK) * slope
            level = tl.where((column + tl.arange(0, BN) < vocab)[None, :], level, float("-inf"))
            largest = tl.maximum(largest, tl.max(level, 1))
        offset = tl.load(offset_ptr + rows, mask=inside, other=float("inf"))
        offset = tl.where(lost, largest, offset)
        total = tl.zeros([BM], tl.float32)
        for column in range(0, columns, BN):
            acc = _product(h_desc, w_desc, row, column, dim, BM, BN, BK)
            total += _emit(acc * slope - offset[:, None], p_desc, row, column, vocab, BN, True)
        tl.store(offset_ptr + rows, offset, mask=inside)
        tl.store(partial_ptr + rows, total, mask=inside)
        for s in range(1, partials):
            tl.store(partial_ptr + s * tokens + rows, tl.zeros([BM], tl.float32), mask=inside)


@triton.jit
def finish_kernel(
    h_ptr, target_ptr, level_ptr, offset_ptr, partial_ptr, p_ptr, loss_ptr, factor_ptr, scaled_ptr,
    tokens, partials, dim, columns, ignore_index, scale, ROWS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Losses; takes the target from its exponential; factors that turn exponentials into gradients, and hidden times
    them."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < tokens
    target = tl.load(target_ptr + rows, mask=inside, other=ignore_index)
    real = inside & (target != ignore_index)
    level = tl.load(level_ptr + rows, mask=real, other=0.0)
    offset = tl.load(offset_ptr + rows, mask=real, other=0.0)
    total = _row_sums(partial_ptr, rows, real, tokens, partials)
    loss = _LOG_OF_2 * (tl.log2(total) - (level - offset))
    tl.store(loss_ptr + rows, tl.where(real, loss, 0.0), mask=inside)
    possible = real & (level == level)
    place = rows.to(tl.int64) * columns + target
    tl.store(p_ptr + place, (tl.exp2(level - offset) - total).to(p_ptr.dtype.element_ty), mask=possible)
    factor = tl.where(real, scale / total, 0.0)
    tl.store(factor_ptr + rows, factor, mask=inside)
    for first in range(0, dim, BK):
        k = first + tl.arange(0, BK)
        mask = inside[:, None] & (k < dim)[None, :]
        where = rows.to(tl.int64)[:, None] * dim + k[None, :]
        h = tl.load(h_ptr + where, mask=mask, other=0.0).to(tl.float32)
        tl.store(scaled_ptr + where, (h * factor[:, None]).to(scaled_ptr.dtype.element_ty), mask=mask)


@triton.jit
def likelihood_kernel(
    h_desc, w_desc, target_ptr, largest_ptr, id_ptr, partial_ptr, level_ptr, tokens, dim, vocab, columns, tiles, slope,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """For one block of tokens and one span of the vocabulary: largest logit (base 2), its first id, the sum of
    exponentials relative to it, and the target's logit, 0 where it is elsewhere."""
    row = tl.program_id(0) * BM
    rows = row + tl.arange(0, BM)
    inside = rows < tokens
    target = tl.load(target_ptr + rows, mask=inside, other=0)
    first = tl.program_id(1) * tiles * BN
    largest = tl.full([BM], float("-inf"), tl.float32)
    best = tl.full([BM], 0x7FFFFFFF, tl.int32)
    total = tl.zeros([BM], tl.float32)
    level = tl.zeros([BM], tl.float32)
    for column in range(first, tl.minimum(first + tiles * BN, columns), BN):
        ids = column + tl.arange(0, BN)
        z = _product(h_desc, w_desc, row, column, dim, BM, BN, BK) * slope
        z = tl.where((ids < vocab)[None, :], z, float("-inf"))
        level += tl.sum(tl.where(ids[None, :] == target[:, None], z, 0.0), 1)
        top = tl.max(z, 1)
        top_id = tl.min(tl.where(z == top[:, None], ids[None, :], 0x7FFFFFFF), 1)
        best = tl.where(top > largest, top_id, best)
        raised = tl.maximum(largest, top)
        # A span of padding alone keeps -inf, from which no difference may be taken.
        base = tl.where(raised == float("-inf"), 0.0, raised)
        total = total * tl.exp2(largest - base) + tl.sum(tl.exp2(z - base[:, None]), 1)
        largest = raised
    place = tl.program_id(1) * tokens + rows
    tl.store(largest_ptr + place, largest, mask=inside)
    tl.store(id_ptr + place, best, mask=inside)
    tl.store(partial_ptr + place, total, mask=inside)
    tl.store(level_ptr + place, level, mask=inside)
