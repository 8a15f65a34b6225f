"""What repeated trainings of one baseline say about noise: its size, how well that is known, and what it hides."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import chdtri

from asiarch_hpc.search.student import noise_multiple

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of some seeds, and the interval that the deviation lies in."""

    mean: float
    sd: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of one number over at least two seeds; the interval is chi-square's, for normal noise."""
    assert len(values) >= 2, len(values)
    freedom, sd, tail = len(values) - 1, statistics.stdev(values), (1.0 - CONFIDENCE) / 2.0
    # chdtri inverts the upper tail.
    low, high = (sd * math.sqrt(freedom / float(chdtri(freedom, share))) for share in (tail, 1.0 - tail))
    return Spread(statistics.fmean(values), sd, low, high)


def least_difference(sd: float, freedom: int, seeds: int, others: int) -> float:
    """The smallest difference of two means, of `seeds` and of `others` trainings, that is beyond noise.

    Of one comparison; among many designs some exceed it by chance.

    Args:
        sd: of one training over seeds, in the unit of the result.
        freedom: degrees of freedom that it is known with.
    """
    return noise_multiple(1.0 - CONFIDENCE, freedom) * sd * math.sqrt(1.0 / seeds + 1.0 / others)
