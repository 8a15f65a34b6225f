"""Which pieces of documents share a row: whole pieces only, so that each row begins where a piece does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Ints = NDArray[np.int64]


def assign_rows(sizes: _Ints, *, length: int, window: int) -> _Ints:
    """Puts pieces into rows by best fit among `window` of them at a time.

    A row takes the largest piece that still fits, again and again until none does; then the next row begins. Rows
    never hold pieces of two windows. Nothing here is random: shuffle the pieces before.

    Args:
        sizes: [pieces], each 1 to `length`.
        length: of a row.
        window: pieces among which a row finds those that fill it; more leave less padding. Time grows with the
            pieces alone, about a microsecond each, and memory beyond the result with the window alone.

    Returns:
        [pieces] the row of each, counted from 0 without gaps.
    """
    rows = np.empty(len(sizes), dtype=np.int64)
    count = 0
    for begin in range(0, len(sizes), window):
        part = sizes[begin : begin + window].tolist()
        found, filled = _fill(part, length)
        rows[begin : begin + len(part)] = found
        rows[begin : begin + len(part)] += count
        count += filled
    return rows


def _fill(sizes: Sequence[int], length: int) -> tuple[list[int], int]:
    """The rows of one window's pieces, and how many rows they are."""
    waiting: defaultdict[int, list[int]] = defaultdict(list)
    for index, size in enumerate(sizes):
        waiting[size].append(index)
    present = sum(1 << size for size in waiting)  # bit n: a piece of size n waits; the highest bit is found at once
    rows = [0] * len(sizes)
    row = 0
    while present:
        room = length
        while fitting := present & ((2 << room) - 1):
            size = fitting.bit_length() - 1
            same = waiting[size]
            rows[same.pop()] = row
            room -= size
            if not same:
                present ^= 1 << size
        row += 1
    return rows, row
