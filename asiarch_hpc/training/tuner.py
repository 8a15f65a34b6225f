"""Matches a design's size to the baseline's, so that designs are compared at equal parameters (truth rule 4)."""

from __future__ import annotations

import math
from collections.abc import Callable

from asiarch_hpc.errors import DesignError

# A design without matrices would ask for an endless width; no sensible match lies beyond this.
_WIDEST = 8
_DEEPEST = 8  # times the baseline's depth, likewise for designs of few parameters


def match_size(
    count: Callable[[int, int], int],
    *,
    target: int,
    reference_dim: int,
    reference_depth: int,
    dim_step: int,
    tolerance: float,
) -> tuple[int, int]:
    """Finds the width, and only if no width fits the depth, at which a design is as large as the baseline.

    Widths lie on the grid `reference_dim + i * dim_step`. The depth stays the baseline's unless no width comes
    within the tolerance; then depths next to it are tried, nearest first. Among the widths the nearest in
    log-ratio wins, ties go to the width nearer to the baseline's.

    Args:
        count: parameters of the design at (dim, depth); may raise DesignError at sizes that it cannot take.
        target: the baseline's parameters.
        reference_dim: the baseline's width.
        reference_depth: the baseline's depth.
        dim_step: grid of widths; a multiple of the number of heads.
        tolerance: largest accepted |count / target - 1|.

    Returns:
        (dim, depth).

    Raises:
        DesignError: no size within the tolerance, or the design cannot be built at any.
    """
    best: _Candidate | None = None
    failure: DesignError | None = None
    for depth in sorted(range(1, 2 * reference_depth + 1), key=lambda d: (abs(d - reference_depth), d)):
        try:
            found = _nearest_width(count, target, reference_dim, depth, dim_step)
        except DesignError as error:
            failure = failure or error
            continue
        if abs(found.parameters / target - 1) <= tolerance:
            return found.dim, depth
        if best is None or found.distance < best.distance:
            best = found
    if best is None:
        assert failure is not None
        raise failure
    raise _no_match(best, target, tolerance, reference_dim, dim_step)


def match_depth_first(
    count: Callable[[int, int], int],
    *,
    target: int,
    reference_dim: int,
    reference_depth: int,
    dim_step: int,
    tolerance: float,
) -> tuple[int, int]:
    """Finds the depth, and only if no depth fits at the baseline's width, a smaller width (Genesys, B.1.4).

    Genesys stops at the first depth within the tolerance, which lies below the target more often than above; here
    the nearest in log-ratio wins. Narrower widths are tried at the smallest depth that exceeds the target.

    Args, Returns, Raises: as in `match_size`.
    """
    below: _Candidate | None = None
    for depth in range(1, _DEEPEST * reference_depth + 1):
        found = _Candidate(reference_dim, depth, count(reference_dim, depth), target)
        if found.parameters >= target:
            break
        below = found
    nearest = min((c for c in (below, found) if c is not None), key=lambda c: c.distance)
    if abs(nearest.parameters / target - 1) > tolerance and found.parameters > target:
        nearest = _nearest_width(count, target, reference_dim, found.depth, dim_step)
    if abs(nearest.parameters / target - 1) <= tolerance:
        return nearest.dim, nearest.depth
    raise _no_match(nearest, target, tolerance, reference_dim, dim_step)


def _no_match(best: _Candidate, target: int, tolerance: float, reference_dim: int, dim_step: int) -> DesignError:
    return DesignError(
        f"no size matches the baseline's {target} non-embedding parameters within {tolerance:.0%}: the nearest is "
        f"{best.parameters} at dim={best.dim}, depth={best.depth}; widths are dim {reference_dim} in steps of "
        f"{dim_step}. Let the design's matrices grow with dim, or make the fixed parts smaller"
    )


class _Candidate:
    """One measured size; `distance` is |ln(parameters / target)|."""

    __slots__ = ("depth", "dim", "distance", "parameters")

    def __init__(self, dim: int, depth: int, parameters: int, target: int) -> None:
        self.dim = dim
        self.depth = depth
        self.parameters = parameters
        self.distance = abs(math.log(parameters / target)) if parameters > 0 else math.inf


def _nearest_width(
    count: Callable[[int, int], int], target: int, reference_dim: int, depth: int, dim_step: int
) -> _Candidate:
    """The best width at one depth: jumps as if parameters grew with dim squared, then walks the grid."""
    lowest = -((reference_dim - 1) // dim_step)
    highest = (_WIDEST - 1) * reference_dim // dim_step
    seen: dict[int, _Candidate | DesignError] = {}

    def measure(index: int) -> _Candidate | None:
        if not lowest <= index <= highest:
            return None
        if index not in seen:
            dim = reference_dim + index * dim_step
            try:
                seen[index] = _Candidate(dim, depth, count(dim, depth), target)
            except DesignError as error:
                seen[index] = error
        found = seen[index]
        return found if isinstance(found, _Candidate) else None

    index = 0
    while index not in seen:
        found = measure(index)
        if found is None or found.parameters <= 0:
            break
        guess = found.dim * math.sqrt(target / found.parameters)
        index = min(highest, max(lowest, round((guess - reference_dim) / dim_step)))

    def better(index: int) -> tuple[float, int]:
        found = seen[index]
        return (found.distance if isinstance(found, _Candidate) else math.inf, abs(index))

    best = min(seen, key=better)
    while True:
        # Two steps each way: a single width that the design cannot take must not end the walk.
        for offset in (-2, -1, 1, 2):
            measure(best + offset)
        nearest = min(seen, key=better)
        if nearest == best:
            break
        best = nearest
    winner = seen[best]
    if isinstance(winner, DesignError):
        raise winner
    return winner
