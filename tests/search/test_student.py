import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtr, stdtrit

from asiarch_hpc.search.student import noise_multiple, two_sided_p


@given(freedom=st.integers(1, 300), t=st.floats(-60, 60))
def test_the_p_value_is_scipys(freedom: int, t: float) -> None:
    assert two_sided_p(t, freedom) == pytest.approx(2.0 * float(stdtr(freedom, -abs(t))), rel=1e-9, abs=1e-13)


@given(freedom=st.integers(1, 300), level=st.floats(1e-4, 0.9))
def test_the_multiple_is_scipys_and_belongs_to_the_p_value(freedom: int, level: float) -> None:
    found = noise_multiple(level, freedom)
    assert found == pytest.approx(float(stdtrit(freedom, 1.0 - level / 2.0)), rel=1e-7)
    assert two_sided_p(found, freedom) == pytest.approx(level, rel=1e-9)


def test_the_multiple_is_that_of_the_tables() -> None:
    assert noise_multiple(0.05, 2) == pytest.approx(4.3027, rel=1e-4)
    assert noise_multiple(0.05, 4) == pytest.approx(2.7764, rel=1e-4)
    assert noise_multiple(0.05, 10**5) == pytest.approx(1.96, rel=1e-3)


def test_nothing_is_known_without_degrees_of_freedom() -> None:
    assert two_sided_p(0.0, 4) == 1.0
    assert math.isnan(two_sided_p(1.0, 0))
    assert math.isnan(two_sided_p(math.nan, 4))
