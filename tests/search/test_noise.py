import random
import statistics

import pytest

from asiarch_hpc.search.noise import least_difference, spread


def test_interval_and_multiple_are_those_of_the_tables() -> None:
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.sd) == (3.0, statistics.stdev([1, 2, 3, 4, 5]))
    # chi-square of 4 degrees of freedom: 0.4844 and 11.143 cut off 2.5 % each
    assert found.low == pytest.approx(found.sd * (4 / 11.1433) ** 0.5, rel=1e-4)
    assert found.high == pytest.approx(found.sd * (4 / 0.484419) ** 0.5, rel=1e-4)


def test_one_comparison_in_twenty_of_equal_designs_lies_beyond_the_least_difference() -> None:
    rng = random.Random(0)
    beyond = 0
    for _ in range(4000):
        seeds = [rng.gauss(4.0, 0.01) for _ in range(4)]
        one, others = rng.gauss(4.0, 0.01), statistics.fmean(rng.gauss(4.0, 0.01) for _ in range(3))
        beyond += abs(one - others) > least_difference(spread(seeds).sd, 3, 1, 3)
    assert beyond / 4000 == pytest.approx(0.05, abs=0.012)
