"""The judge's rule: calibrated on the reference, monotone in cost, and plain about its reasons."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_examples import BASELINES, gate_report, stats

from asiarch_hpc.config import FitnessConfig
from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.records import Judgement
from asiarch_hpc.search.judge_rule import VERSION, judge

CONFIG = FitnessConfig()


def grade(**changes: float) -> Judgement:
    return judge("a design", gate_report(**changes), BASELINES[0], CONFIG)


def test_the_reference_is_graded_five() -> None:
    found = grade()
    assert (found.raw, found.source, found.version) == (5.0, "rule", VERSION)


def test_twice_as_fast_and_twice_as_slow() -> None:
    assert grade(modelled_seconds_per_token=1e-6).raw == pytest.approx(7.0)
    assert grade(modelled_seconds_per_token=4e-6).raw == pytest.approx(3.0)


def test_quadratic_growth_costs_points() -> None:
    assert grade(time_exponent=1.3).raw == 5.0
    assert grade(time_exponent=1.5).raw == pytest.approx(4.0)
    assert grade(time_exponent=2.0).raw == pytest.approx(1.5)


def test_a_steep_reference_sets_its_own_limit() -> None:
    steep = stats(time_exponent=1.6)
    assert judge("x", gate_report(time_exponent=1.6), steep, CONFIG).raw == 5.0


def test_parameters_cost_points() -> None:
    assert grade(parameters=300_000).raw == pytest.approx(4.0)
    assert grade(parameters=75_000).raw == pytest.approx(6.0)


def test_reasons_name_numbers() -> None:
    reasons = " | ".join(grade(modelled_seconds_per_token=4e-6, parameters=165_000, time_exponent=1.5).reasons)
    for part in ("graded 5", "2 times delta_net's", "-2.00", "length^1.50", "165,000", "150,000"):
        assert part in reasons
    assert "counts as 1" in grade(modelled_seconds_per_token=1.0).reasons[-1]


@settings(deadline=None, max_examples=60)
@given(st.floats(1e-9, 1e-2), st.floats(0.1, 3.0), st.integers(1, 10**9), st.floats(1.0, 4.0))
def test_in_range_and_never_better_when_slower(time: float, growth: float, parameters: int, more: float) -> None:
    fast = grade(modelled_seconds_per_token=time, time_exponent=growth, parameters=parameters)
    slow = grade(modelled_seconds_per_token=time * more, time_exponent=growth * more, parameters=parameters)
    assert 1.0 <= slow.raw <= fast.raw <= 10.0


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["modelled_seconds_per_token", "time_exponent", "parameters"])
def test_missing_measurements_are_no_grade(field: str, value: float) -> None:
    with pytest.raises(EvaluationError, match=field):
        grade(**{field: value})
    with pytest.raises(EvaluationError, match=field):
        judge("x", gate_report(), stats(**{field: value}), CONFIG)


def test_rejected_designs_are_not_judged() -> None:
    with pytest.raises(EvaluationError, match="gate rejected"):
        grade(passed=False)
