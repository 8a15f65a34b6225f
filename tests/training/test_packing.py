"""Which pieces share a row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.training.packing import assign_rows


def rows_of(sizes: list[int], length: int, window: int) -> list[list[int]]:
    """The sizes in each row."""
    numbers = assign_rows(np.asarray(sizes, dtype=np.int64), length=length, window=window).tolist()
    rows: list[list[int]] = [[] for _ in range(max(numbers, default=-1) + 1)]
    for number, size in zip(numbers, sizes, strict=True):
        rows[number].append(size)
    return rows


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (10, [[8, 2], [7, 3], [6, 4], [5, 5], [2, 1]]),
        (4, [[6, 4], [5, 5], [3, 7], [8, 2], [2, 1]]),
        (1, [[6], [5], [4], [5], [3], [7], [8], [2], [2], [1]]),
    ],
)
def test_rows_are_filled_by_best_fit_within_a_window(window: int, expected: list[list[int]]) -> None:
    found = rows_of([6, 5, 4, 5, 3, 7, 8, 2, 2, 1], 10, window)
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


@given(
    length=st.integers(1, 40),
    shares=st.lists(st.floats(0, 1), max_size=60),
    window=st.integers(1, 70),
)
@settings(deadline=None, max_examples=200)
def test_no_piece_of_a_later_row_of_the_window_would_have_fitted(length: int, shares: list[float], window: int) -> None:
    sizes = [1 + int(share * (length - 1)) for share in shares]
    numbers = assign_rows(np.asarray(sizes, dtype=np.int64), length=length, window=window)
    assert numbers.shape == (len(sizes),)
    assert sorted(set(numbers.tolist())) == list(range(len(set(numbers.tolist()))))  # without gaps
    before: set[int] = set()
    for begin in range(0, len(sizes), window):
        part = numbers[begin : begin + window].tolist()
        assert not before & set(part)
        before |= set(part)
        for row in set(part):
            room = length - sum(size for size, at in zip(sizes[begin:], part, strict=False) if at == row)
            later = [size for size, at in zip(sizes[begin:], part, strict=False) if at > row]
            assert room >= 0
            assert not any(size <= room for size in later)


@pytest.mark.parametrize("length", [512, 2048])
def test_text_of_usual_lengths_leaves_little_room(length: int) -> None:
    sizes = np.maximum(1, np.random.default_rng(0).lognormal(6.5, 0.9, 20_000).astype(np.int64)) % length
    sizes = sizes[sizes > 0]
    rows = int(assign_rows(sizes, length=length, window=10_000).max()) + 1
    assert 1 - sizes.sum() / (rows * length) < 0.01
