"""Kernels of the short convolution: every token is read once, and its neighbours stay in registers."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, assignment, var-annotated"
# ruff: noqa: RUF005 (Triton knows no starred tuples)

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]


@triton.jit
def _place(length, dim, TOKENS: tl.constexpr, BD: tl.constexpr):
    """This program's sequence, first token and channels. Programs that run at the same time share tokens, so that
    together they read whole rows."""
    parts = tl.cdiv(dim, BD)
    block = tl.program_id(0) // parts
    blocks = tl.cdiv(length, TOKENS)
    d = tl.program_id(0) % parts * BD + tl.arange(0, BD)
    return (block // blocks).to(tl.int64), block % blocks * TOKENS, d


@triton.jit
def _row(ptr, t, stride, d, length, inside):
    """Token t as it is stored, 0 outside the sequence."""
    return tl.load(ptr + t * stride + d, mask=inside & (t >= 0) & (t < length), other=0.0)


@triton.jit
def _rows(ptr, first, stride, d, length, inside, COUNT: tl.constexpr):
    rows = ()
    for u in tl.static_range(COUNT):
        rows = rows + (_row(ptr, first + u, stride, d, length, inside),)
    return rows


@triton.jit
def _neighbours(x_ptr, first, stride, d, length, inside, WIDTH: tl.constexpr):
    """The WIDTH - 1 tokens before the first."""
    window = ()
    for j in tl.static_range(WIDTH - 1):
        window = window + (_row(x_ptr, first - (WIDTH - 1) + j, stride, d, length, inside).to(tl.float32),)
    return window


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _mark(documents_ptr, t, length, there):
    """The document of token t, of the nearest one outside the sequence."""
    return tl.load(documents_ptr + tl.maximum(tl.minimum(t, length - 1), 0), mask=there)


@triton.jit
def _crossings(documents_ptr, first, length, WIDTH: tl.constexpr, TOKENS: tl.constexpr, GROUP: tl.constexpr):
    """Bit i: an output or gradient of the i-th GROUP of tokens, or a gradient that it adds to, has another document
    within its reach. Numbers may come back, so all are compared with the ones before them."""
    at = tl.arange(0, triton.next_power_of_2(TOKENS + 2 * WIDTH - 3)) - (WIDTH - 2)
    there = at < TOKENS + WIDTH - 1
    begins = _mark(documents_ptr, first + at, length, there) != _mark(documents_ptr, first + at - 1, length, there)
    # From the group of the document's first token to that of the last one that reaches back over it.
    groups = (2 << (at + WIDTH - 2) // GROUP) - (1 << tl.maximum(at, 0) // GROUP)
    return tl.reduce(tl.where(begins & there, groups, 0), 0, _either)


@triton.jit
def _runs(documents_ptr, first, length, COUNT: tl.constexpr):
    """How often the document has changed up to each of COUNT tokens."""
    previous = _mark(documents_ptr, first, length, None)
    run = first - first
    runs = (run,)
    for u in tl.static_range(1, COUNT):
        mark = _mark(documents_ptr, first + u, length, None)
        run += (mark != previous).to(tl.int32)
        runs = runs + (run,)
        previous = mark
    return runs


@triton.jit
def _of_newest(seen, runs, FROM: tl.constexpr, WIDTH: tl.constexpr):
    """Zeros in place of what is not of the last one's document."""
    kept = ()
    for j in tl.static_range(WIDTH):
        kept = kept + (tl.where(runs[FROM + j] == runs[FROM + WIDTH - 1], seen[j], 0.0),)
    return kept


@triton.jit
def _of_oldest(passed, runs, FROM: tl.constexpr, WIDTH: tl.constexpr):
    """As `_of_newest`, of what is newest first."""
    kept = ()
    for j in tl.static_range(WIDTH):
        kept = kept + (tl.where(runs[FROM + WIDTH - 1 - j] == runs[FROM], passed[j], 0.0),)
    return kept


@triton.jit
def _taps(w_ptr, d, inside, WIDTH: tl.constexpr):
    taps = ()
    for j in tl.static_range(WIDTH):
        taps = taps + (tl.load(w_ptr + d * WIDTH + j, mask=inside, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def _filtered(window, taps, start, WIDTH: tl.constexpr):
    total = start
    for j in tl.static_range(WIDTH):
        total += taps[j] * window[j]
    return total


@triton.jit
def _sigmoid(z):
    """By a reciprocal square root, which is one instruction, where a division is many."""
    root = tl.rsqrt(1 + tl.exp2(z * -1.4426950408889634))
    return root * root


@triton.jit
def _outputs(
    y_ptr, documents_ptr, block, last, length, dim, d, inside, window, rows, taps, bias,
    WIDTH: tl.constexpr, SILU: tl.constexpr, APART: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Of AHEAD tokens. Returns the WIDTH - 1 tokens before the next one."""
    if APART:
        runs = _runs(documents_ptr, block - (WIDTH - 1), length, WIDTH - 1 + AHEAD)
    for u in tl.static_range(AHEAD):
        seen = window + (rows[u].to(tl.float32),)
        near = seen
        if APART:
            near = _of_newest(seen, runs, u, WIDTH)
        y = _filtered(near, taps, bias, WIDTH)
        if SILU:
            y *= _sigmoid(y)
        mask = inside & (block + u < last)
        tl.store(y_ptr + (block + u) * dim + d, y.to(y_ptr.dtype.element_ty), mask=mask)
        window = seen[1:]
    return window


@triton.jit
def forward_kernel(
    x_ptr, w_ptr, b_ptr, documents_ptr, y_ptr, length, dim, x_batch, x_token,
    WIDTH: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, APART: tl.constexpr, TOKENS: tl.constexpr,
    AHEAD: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """TOKENS tokens of BD channels of one sequence; AHEAD tokens are read while as many are computed.

    APART: what is before a document counts as zero. WIDTH is at least 2 then. Where a border is near, which is rare,
    tokens are read again one by one: that takes no more registers than the others do.
    """
    batch, first, d = _place(length, dim, TOKENS, BD)
    last = tl.minimum(first + TOKENS, length)
    inside = d < dim
    x_ptr += batch * x_batch
    y_ptr += batch * length * dim
    taps = _taps(w_ptr, d, inside, WIDTH)
    bias = tl.zeros([BD], tl.float32)
    if BIAS:
        bias += tl.load(b_ptr + d, mask=inside, other=0.0).to(tl.float32)
    window = _neighbours(x_ptr, first, x_token, d, length, inside, WIDTH)
    rows = _rows(x_ptr, first, x_token, d, last, inside, AHEAD)
    # Blocks are marked in groups, so that 32 bits suffice.
    GROUP: tl.constexpr = AHEAD * triton.cdiv(TOKENS, 16 * AHEAD)
    if APART:
        documents_ptr += batch * length
        crossings = _crossings(documents_ptr, first, length, WIDTH, TOKENS, GROUP)
    for block in range(first, last, AHEAD):
        following = _rows(x_ptr, block + AHEAD, x_token, d, last, inside, AHEAD)
        if APART and (crossings >> (block - first).to(tl.uint32) // GROUP) & 1 != 0:
            for u in range(AHEAD):
                t = block + u
                window = _outputs(
                    y_ptr, documents_ptr, t, last, length, dim, d, inside, window,
                    _rows(x_ptr, t, x_token, d, last, inside, 1), taps, bias, WIDTH, SILU, True, 1,
                )  # fmt: skip
        else:
            window = _outputs(
                y_ptr, documents_ptr, block, last, length, dim, d, inside, window, rows, taps, bias,
                WIDTH, SILU, False, AHEAD,
            )  # fmt: skip
        rows = following


@triton.jit
def _gradients(
    dx_ptr, documents_ptr, block, first, last, length, dim, d, inside, window, rows, upstream, later, by_taps, by_bias,
    taps, bias, WIDTH: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, APART: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Adds what AHEAD tokens pass back. Returns window, later, by_taps and by_bias of the next ones."""
    if APART:
        runs = _runs(documents_ptr, block - (WIDTH - 1), length, WIDTH - 1 + AHEAD)
    for u in tl.static_range(AHEAD):
        seen = window + (rows[u].to(tl.float32),)
        near = seen
        if APART:
            near = _of_newest(seen, runs, u, WIDTH)
        dz = upstream[u].to(tl.float32)
        if SILU:
            z = _filtered(near, taps, bias, WIDTH)
            s = _sigmoid(z)
            dz *= s + z * s * (1 - s)
        own = tl.where(block + u < last, dz, 0.0)
        if BIAS:
            by_bias += own
        added = ()
        for j in tl.static_range(WIDTH):
            added = added + (by_taps[j] + own * near[j],)
        by_taps = added
        # Newest first: the newest one reaches the token WIDTH - 1 before it through the first tap.
        passed = (dz,) + later
        t = block + u - (WIDTH - 1)
        reaching = passed
        if APART:
            reaching = _of_oldest(passed, runs, u, WIDTH)
        dx = _filtered(reaching, taps, tl.zeros_like(bias), WIDTH)
        tl.store(dx_ptr + t * dim + d, dx.to(dx_ptr.dtype.element_ty), mask=inside & (t >= first) & (t < last))
        window = seen[1:]
        later = passed[: WIDTH - 1]
    return window, later, by_taps, by_bias


@triton.jit
def backward_kernel(
    x_ptr, w_ptr, b_ptr, documents_ptr, dy_ptr, dx_ptr, partial_ptr, length, dim, x_batch, x_token,
    WIDTH: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, APART: tl.constexpr, TOKENS: tl.constexpr,
    AHEAD: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """As `forward_kernel`; the gradient of a token follows WIDTH - 1 tokens behind, when all that it reached are known.

    Writes partial sums [WIDTH + 1, dim] of the gradients of taps and bias.
    """
    batch, first, d = _place(length, dim, TOKENS, BD)
    last = tl.minimum(first + TOKENS, length)
    # The tokens from there on are the next program's, here only for what they pass back.
    reached = tl.minimum(last + WIDTH - 1, length)
    inside = d < dim
    x_ptr += batch * x_batch
    dy_ptr += batch * length * dim
    dx_ptr += batch * length * dim
    partial_ptr += tl.program_id(0).to(tl.int64) // tl.cdiv(dim, BD) * (WIDTH + 1) * dim
    taps = _taps(w_ptr, d, inside, WIDTH)
    bias = tl.zeros([BD], tl.float32)
    if BIAS:
        bias += tl.load(b_ptr + d, mask=inside, other=0.0).to(tl.float32)
    window = _neighbours(x_ptr, first, x_token, d, length, inside, WIDTH)
    later, by_taps = (), ()
    for _ in tl.static_range(WIDTH - 1):
        later = later + (tl.zeros([BD], tl.float32),)
    for _ in tl.static_range(WIDTH):
        by_taps = by_taps + (tl.zeros([BD], tl.float32),)
    by_bias = tl.zeros([BD], tl.float32)
    rows = _rows(x_ptr, first, x_token, d, reached, inside, AHEAD)
    upstream = _rows(dy_ptr, first, dim, d, reached, inside, AHEAD)
    GROUP: tl.constexpr = AHEAD * triton.cdiv(TOKENS, 16 * AHEAD)
    if APART:
        documents_ptr += batch * length
        crossings = _crossings(documents_ptr, first, length, WIDTH, TOKENS, GROUP)
    for block in range(first, last + WIDTH - 1, AHEAD):
        following = _rows(x_ptr, block + AHEAD, x_token, d, reached, inside, AHEAD)
        following_upstream = _rows(dy_ptr, block + AHEAD, dim, d, reached, inside, AHEAD)
        if APART and (crossings >> (block - first).to(tl.uint32) // GROUP) & 1 != 0:
            for u in range(AHEAD):
                t = block + u
                window, later, by_taps, by_bias = _gradients(
                    dx_ptr, documents_ptr, t, first, last, length, dim, d, inside, window,
                    _rows(x_ptr, t, x_token, d, reached, inside, 1), _rows(dy_ptr, t, dim, d, reached, inside, 1),
                    later, by_taps, by_bias, taps, bias, WIDTH, BIAS, SILU, True, 1,
                )  # fmt: skip
        else:
            window, later, by_taps, by_bias = _gradients(
                dx_ptr, documents_ptr, block, first, last, length, dim, d, inside, window, rows, upstream, later,
                by_taps, by_bias, taps, bias, WIDTH, BIAS, SILU, False, AHEAD,
            )  # fmt: skip
        rows = following
        upstream = following_upstream
    for j in tl.static_range(WIDTH):
        tl.store(partial_ptr + j * dim + d, by_taps[j], mask=inside)
    tl.store(partial_ptr + WIDTH * dim + d, by_bias, mask=inside)
