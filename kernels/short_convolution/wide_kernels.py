"""Kernels of wide short convolutions: eight outputs and eight taps at a time in registers. README.md describes them."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, assignment, var-annotated"
# ruff: noqa: RUF005 (Triton knows no starred tuples)

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from kernels.short_convolution.triton_kernels import _place, _rows, _sigmoid


@triton.jit
def _numbers(ptr, first, stride, d, length, inside):
    """Eight tokens in float32, 0 outside the sequence."""
    stored = _rows(ptr, first, stride, d, length, inside, 8)
    rows = ()
    for u in tl.static_range(8):
        rows = rows + (stored[u].to(tl.float32),)
    return rows


@triton.jit
def _runs(ptr, first, stride, length):
    """Which document of its sequence each of eight tokens is of, from 1 on; 0 outside the sequence."""
    runs = ()
    for u in tl.static_range(8):
        t = first + u
        runs = runs + (tl.load(ptr + t * stride, mask=(t >= 0) & (t < length), other=0),)
    return runs


@triton.jit
def _of_run(rows, runs, run):
    """Zeros in place of the tokens of other documents."""
    kept = ()
    for u in tl.static_range(8):
        kept = kept + (tl.where(runs[u] == run, rows[u], 0.0),)
    return kept


@triton.jit
def _inputs(x_ptr, runs_ptr, run, first, stride, runs_stride, d, length, inside, APART: tl.constexpr):
    rows = _numbers(x_ptr, first, stride, d, length, inside)
    if APART:
        rows = _of_run(rows, _runs(runs_ptr, first, runs_stride, length), run)
    return rows


@triton.jit
def _added(totals, rows, current, previous, CURRENT: tl.constexpr, PREVIOUS: tl.constexpr):
    """Token i of `rows` meets output u at tap i - u of `current`, or for i < u at tap 8 + i - u of `previous`. Taps
    below CURRENT and PREVIOUS are left out, since 0 times nan is nan."""
    results = ()
    for u in tl.static_range(8):
        total = totals[u]
        for i in tl.static_range(8):
            if i >= u:
                if i - u >= CURRENT:
                    total += rows[i] * current[i - u]
            else:
                if 8 + i - u >= PREVIOUS:
                    total += rows[i] * previous[8 + i - u]
        results = results + (total,)
    return results


@triton.jit
def _eight(
    x_ptr, w_ptr, runs_ptr, run, dy_ptr, y_ptr, bias, block, length, dim, x_token, y_token, runs_token, d, inside,
    GROUPS: tl.constexpr, MISSING: tl.constexpr, APART: tl.constexpr, SILU: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Eight outputs of `filter_kernel`; APART: of them those of one run."""
    totals = (bias, bias, bias, bias, bias, bias, bias, bias)
    start = block - (8 * GROUPS - 1)
    previous = _numbers(w_ptr, 0, dim, d, 8 * GROUPS, inside)
    rows = _inputs(x_ptr, runs_ptr, run, start, x_token, runs_token, d, length, inside, APART)
    totals = _added(totals, rows, previous, previous, MISSING, 8)
    current = _numbers(w_ptr, 8, dim, d, 8 * GROUPS, inside)
    rows = _inputs(x_ptr, runs_ptr, run, start + 8, x_token, runs_token, d, length, inside, APART)
    totals = _added(totals, rows, current, previous, 0, MISSING)
    previous = current
    for group in range(2, GROUPS):
        current = _numbers(w_ptr, group * 8, dim, d, 8 * GROUPS, inside)
        rows = _inputs(x_ptr, runs_ptr, run, start + group * 8, x_token, runs_token, d, length, inside, APART)
        totals = _added(totals, rows, current, previous, 0, 0)
        previous = current
    rows = _inputs(x_ptr, runs_ptr, run, start + 8 * GROUPS, x_token, runs_token, d, length, inside, APART)
    totals = _added(totals, rows, previous, previous, 8, 0)
    for u in tl.static_range(8):
        t = block + u
        mask = inside & (t < length)
        if APART:
            mask &= tl.load(runs_ptr + t * runs_token, mask=t < length, other=0) == run
        y = totals[u]
        if SLOPE:
            s = _sigmoid(y)
            dy = tl.load(dy_ptr + t * dim + d, mask=mask, other=0.0).to(tl.float32)
            y = dy * (s + y * s * (1 - s))
        else:
            if SILU:
                y *= _sigmoid(y)
        tl.store(y_ptr + t * y_token + d, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def filter_kernel(
    x_ptr, w_ptr, b_ptr, runs_ptr, dy_ptr, y_ptr, length, dim, x_batch, x_token,
    GROUPS: tl.constexpr, MISSING: tl.constexpr, BIAS: tl.constexpr, APART: tl.constexpr, SILU: tl.constexpr,
    SLOPE: tl.constexpr, REVERSE: tl.constexpr, TOKENS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y = activation(bias + filtered x); SLOPE: dy times the activation's slope there; REVERSE: time runs backwards.

    w [8 GROUPS, dim] float32, of which the first MISSING taps do not exist. At least two groups. APART: a tap reads
    tokens of the same run alone, runs [batch, length]; nearly always all eight outputs of a step are of one.
    """
    batch, first, d = _place(length, dim, TOKENS, BD)
    inside = d < dim
    y_token = dim
    runs_token = 1
    x_ptr += batch * x_batch
    y_ptr += batch * length * dim
    if SLOPE:
        dy_ptr += batch * length * dim
    if APART:
        runs_ptr += batch * length
    if REVERSE:
        x_ptr += (length - 1) * x_token
        y_ptr += (length - 1) * dim
        x_token = -x_token
        y_token = -dim
        if APART:
            runs_ptr += length - 1
            runs_token = -1
    bias = tl.zeros([BD], tl.float32)
    if BIAS:
        bias += tl.load(b_ptr + d, mask=inside, other=0.0).to(tl.float32)
    for block in range(first, tl.minimum(first + TOKENS, length), 8):
        if APART:
            one = tl.load(runs_ptr + block * runs_token)
            other = tl.load(runs_ptr + tl.minimum(block + 7, length - 1) * runs_token)
            for run in range(tl.minimum(one, other), tl.maximum(one, other) + 1):
                _eight(
                    x_ptr, w_ptr, runs_ptr, run, dy_ptr, y_ptr, bias, block, length, dim, x_token, y_token, runs_token,
                    d, inside, GROUPS, MISSING, APART, SILU, SLOPE,
                )  # fmt: skip
        else:
            _eight(
                x_ptr, w_ptr, runs_ptr, 0, dy_ptr, y_ptr, bias, block, length, dim, x_token, y_token, runs_token,
                d, inside, GROUPS, MISSING, APART, SILU, SLOPE,
            )  # fmt: skip


@triton.jit
def _by_taps(totals, dz, before, after):
    """Adds the products of eight gradients with the tokens that eight taps saw."""
    results = ()
    for j in tl.static_range(8):
        total = totals[j]
        for i in tl.static_range(8):
            if i + j < 8:
                total += dz[i] * before[i + j]
            else:
                total += dz[i] * after[i + j - 8]
        results = results + (total,)
    return results


@triton.jit
def taps_kernel(
    x_ptr, runs_ptr, dz_ptr, partial_ptr, length, dim, x_batch, x_token,
    GROUPS: tl.constexpr, APART: tl.constexpr, TOKENS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Partial sums [8 GROUPS, dim] of the gradients of taps, eight of them in each program along the grid's second
    axis."""
    batch, first, d = _place(length, dim, TOKENS, BD)
    group = tl.program_id(1)
    last = tl.minimum(first + TOKENS, length)
    inside = d < dim
    x_ptr += batch * x_batch
    dz_ptr += batch * length * dim
    partial_ptr += (tl.program_id(0).to(tl.int64) // tl.cdiv(dim, BD) * GROUPS + group) * 8 * dim
    zero = tl.zeros([BD], tl.float32)
    totals = (zero, zero, zero, zero, zero, zero, zero, zero)
    start = (group - GROUPS) * 8 + 1
    before = _numbers(x_ptr, first + start, x_token, d, length, inside)
    if APART:
        runs_ptr += batch * length
        runs_before = _runs(runs_ptr, first + start, 1, length)
    for block in range(first, last, 8):
        after = _numbers(x_ptr, block + start + 8, x_token, d, length, inside)
        dz = _numbers(dz_ptr, block, dim, d, last, inside)
        if APART:
            runs_after = _runs(runs_ptr, block + start + 8, 1, length)
            runs = _runs(runs_ptr, block, 1, last)
            for run in range(runs[0], tl.load(runs_ptr + tl.minimum(block + 7, last - 1)) + 1):
                own = _of_run(dz, runs, run)
                totals = _by_taps(totals, own, _of_run(before, runs_before, run), _of_run(after, runs_after, run))
            runs_before = runs_after
        else:
            totals = _by_taps(totals, dz, before, after)
        before = after
    for j in tl.static_range(8):
        tl.store(partial_ptr + j * dim + d, totals[j], mask=inside)
