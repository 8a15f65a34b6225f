"""Baseline statistics: what may enter them, and the noise that follows from them."""

import math
import statistics

import pytest
from search_examples import BASELINES, UPPER_ID, evaluation, gate_report, scored, stats

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.records import TaskScore
from asiarch_hpc.search.baselines import (
    baseline_stats,
    checked_evaluations,
    difference_sd,
    loss_difference,
    seed_spread,
)

LOSSES = (4.50, 4.53, 4.47)


def test_mean_and_sample_deviation() -> None:
    trials = [evaluation("a" * 16, f"s{i}", loss=x, benchmark=x / 10) for i, x in enumerate(LOSSES)]
    found = baseline_stats("a" * 16, "delta_net", trials, gate_report(parameters=7))
    assert (found.seeds, found.name, found.parameters) == (3, "delta_net", 7)
    assert found.loss_mean == pytest.approx(4.5)
    assert found.loss_sd == pytest.approx(statistics.stdev(LOSSES)) == pytest.approx(0.03)
    assert found.benchmark_sd == pytest.approx(0.003)


def test_two_seeds_are_too_few() -> None:
    with pytest.raises(EvaluationError, match="2 evaluated seeds, expected at least 3"):
        baseline_stats("c" * 16, "delta_net", [evaluation(trial="a"), evaluation(trial="b")], gate_report())


def test_one_trial_given_three_times_is_no_spread() -> None:
    with pytest.raises(EvaluationError, match="twice"):
        baseline_stats("c" * 16, "delta_net", [evaluation()] * 3, gate_report())


def test_foreign_evaluations_are_refused() -> None:
    with pytest.raises(EvaluationError, match="several experiments"):
        checked_evaluations([evaluation("a" * 16), evaluation("b" * 16, "s1")])
    with pytest.raises(EvaluationError, match="expected bb"):
        baseline_stats("bb", "delta_net", [evaluation(trial=str(i)) for i in range(3)], gate_report())


@pytest.mark.parametrize(
    "change",
    [
        {"passed": False},
        {"modelled_seconds_per_token": 0.0},
        {"modelled_seconds_per_token": math.nan},
        {"parameters": 0},
        {"time_exponent": math.inf},
    ],
)
def test_unmeasured_cost_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(EvaluationError, match="gate"):
        baseline_stats("c" * 16, "d", [evaluation(trial=str(i)) for i in range(3)], gate_report(**change))


@pytest.mark.parametrize("field", ["loss", "bits_per_byte", "benchmark", "untrained_loss", "uniform_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, None, "4.5", True])
def test_absurd_numbers_are_failures(field: str, value: object) -> None:
    if field == "benchmark" and value is None:
        value = 1.5
    with pytest.raises(EvaluationError, match=field):
        checked_evaluations([evaluation(**{field: value})])


def test_untrained_or_taskless_models_get_nothing() -> None:
    with pytest.raises(EvaluationError, match="untrained"):
        checked_evaluations([evaluation(loss=7.6)])
    with pytest.raises(EvaluationError, match="uniform"):
        checked_evaluations([evaluation(loss=7.7, untrained_loss=9.0)])
    with pytest.raises(EvaluationError, match="no task scores"):
        checked_evaluations([evaluation(tasks={})])
    with pytest.raises(EvaluationError, match="stderr"):
        checked_evaluations(
            [evaluation(tasks={"x": TaskScore(accuracy=0.3, stderr=math.nan, chance=0.1, questions=10)})]
        )
    with pytest.raises(EvaluationError, match="no evaluation"):
        checked_evaluations([])


def test_spread_is_pooled_by_degrees_of_freedom() -> None:
    spread = seed_spread([stats(loss_sd=0.01, seeds=3), stats(UPPER_ID, loss_sd=0.02, seeds=5)])
    assert spread.freedom == 6
    assert spread.loss == pytest.approx(math.sqrt((2 * 0.01**2 + 4 * 0.02**2) / 6))
    assert seed_spread([stats(), stats()]) == seed_spread([stats()])  # a baseline given twice counts once
    with pytest.raises(EvaluationError, match="train the baselines"):
        seed_spread([])
    with pytest.raises(EvaluationError, match="at least two seeds"):
        seed_spread([stats(loss_sd=math.nan)])


def test_verdict_on_a_difference() -> None:
    def verdict(loss: float, runs: int = 1) -> str:
        return loss_difference(scored("c", 0.5, loss=loss), runs, BASELINES[0], BASELINES, 0.05).verdict

    sd = difference_sd(0.01, 1, 3)
    assert sd == pytest.approx(0.01 * math.sqrt(4 / 3))
    assert verdict(4.5 - 2.7 * sd) == verdict(4.5 + 2.7 * sd) == "within noise"
    assert verdict(4.5 - 2.9 * sd) == "better"
    assert verdict(4.5 + 2.9 * sd) == "worse"
    assert verdict(4.5 - 2.7 * sd, runs=10) == "better"
    assert verdict(math.nan) == "noise unknown"
    lonely = stats(seeds=1)
    assert loss_difference(scored("c", 0.5, loss=1.0), 1, lonely, [], 0.05).verdict == "noise unknown"
