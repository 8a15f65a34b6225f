"""Student's t distribution in plain Python: a controller judges differences without loading NumPy."""

from __future__ import annotations

import functools
import math


def two_sided_p(t: float, freedom: int) -> float:
    """Chance of a value at least as far from 0, exact to 1e-12 or better; NaN without degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    if freedom < 1 or math.isnan(t):
        return math.nan
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for index in range(freedom // 2):
        total += term
        term *= square * (2 * index + 1 + odd) / (2 * index + 2 + odd)
    inside = 2.0 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1.0 - inside))


@functools.cache
def noise_multiple(level: float, freedom: int) -> float:
    """How many standard deviations of a difference chance exceeds with probability `level`, in either direction."""
    assert 0.0 < level < 1.0, level
    assert freedom >= 1, freedom
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > level:
        low, high = high, 2.0 * high
    while (middle := (low + high) / 2.0) not in (low, high):
        low, high = (middle, high) if two_sided_p(middle, freedom) > level else (low, middle)
    return high
