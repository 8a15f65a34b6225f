"""Accuracies become scores with an error, a chance level and a verdict on it, or are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from asiarch_hpc.config import EvaluationConfig
from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation.scores import Measured, averages, benchmark, task_scores
from asiarch_hpc.records import TaskScore


def measured(accuracy: Any, questions: int = 400, chance: float = 0.25, **more: Any) -> Measured:
    return Measured({"acc,none": accuracy, **more}, questions, chance)


def score(*members: Measured, **options: Any) -> TaskScore:
    return task_scores({"piqa": members}, EvaluationConfig(tasks=["piqa"], **options))["piqa"]


def test_a_score_has_the_binomial_error_and_the_distance_from_chance() -> None:
    found = score(measured(0.3, acc_norm=None, **{"acc_norm,none": 0.35}))
    assert found.stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 400))
    assert found.z == pytest.approx(0.05 / math.sqrt(0.3 * 0.7 / 400))
    assert (found.chance, found.questions, found.metric, found.normalised) == (0.25, 400, "acc", 0.35)
    by_byte = score(measured(0.3, **{"acc_norm,none": 0.35}), metrics={"piqa": "acc_norm"})
    assert (by_byte.accuracy, by_byte.metric) == (0.35, "acc_norm")


@pytest.mark.parametrize(
    ("accuracy", "questions", "chance", "above"),
    [
        (0.25, 400, 0.25, False),
        (0.27, 400, 0.25, False),  # 0.9 standard errors
        (0.29, 400, 0.25, True),  # 1.8
        (0.10, 400, 0.25, False),  # far, on the wrong side
        (2 / 500, 500, 0.0, False),  # two right answers where none was likely
        (3 / 500, 500, 0.0, True),
        (0.0, 500, 0.0, False),
        (1.0, 20, 0.5, True),
    ],
)
def test_above_chance_is_one_sided_and_needs_more_than_noise(
    accuracy: float, questions: int, chance: float, above: bool
) -> None:
    assert score(measured(accuracy, questions, chance)).above_chance is above


def test_a_group_is_the_mean_of_its_members() -> None:
    found = score(measured(0.5, 100, 0.5), measured(0.9, 400, 0.5))
    assert found.accuracy == pytest.approx(0.7)
    assert found.questions == 500
    assert found.stderr == pytest.approx(math.sqrt(0.25 / 100 + 0.09 / 400) / 2)
    assert found.above_chance


def test_a_correlation_counts_from_its_own_chance() -> None:
    found = score(Measured({"mcc,none": 0.0}, 1000, 0.5), metrics={"piqa": "mcc"})
    assert (found.accuracy, found.z) == (0.5, 0.0)


def test_the_benchmark_is_the_mean_of_what_counts() -> None:
    config = EvaluationConfig(
        tasks=["a", "b", "c"], averages={"two": ["a", "b"], "other": ["a", "absent"]}, benchmark="two"
    )
    scores = task_scores({name: [measured(share)] for name, share in zip("abc", (0.2, 0.4, 0.9), strict=True)}, config)
    assert benchmark(scores) == pytest.approx(0.3)
    assert averages(scores, config) == {"two": pytest.approx(0.3)}
    assert [s.counted for s in scores.values()] == [True, True, False]
    plain = EvaluationConfig(tasks=["a", "b", "c"])
    assert benchmark(task_scores({n: [measured(0.3)] for n in "abc"}, plain)) == pytest.approx(0.3)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -0.1, 1.1, "N/A", True])
def test_missing_or_absurd_accuracies_are_refused(value: Any) -> None:
    with pytest.raises(EvaluationError, match="task piqa: acc"):
        score(measured(value))


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(EvaluationError, match="of 0 questions"):
        score(measured(0.5, 0))
    config = EvaluationConfig(tasks=["recall"], questions=5)
    with pytest.raises(EvaluationError, match="task recall: not the expected 5 questions"):
        task_scores({"recall": [measured(0.5, 4)]}, config)
