"""From what lm-eval reports to the scores of tasks, and the checks that it is an accuracy at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asiarch_hpc.config import EvaluationConfig
from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation.sources import OWN_TASKS
from asiarch_hpc.records import TaskScore


@dataclass(frozen=True, slots=True)
class Measured:
    """What lm-eval reported for one task or one member of a group.

    Attributes:
        values: by metric and filter, as in `acc,none`.
        questions: documents asked.
        chance: accuracy of a uniform guess among the choices; 0 where the answer is free text.
    """

    values: Mapping[str, Any]
    questions: int
    chance: float


def number(name: str, values: Mapping[str, Any], key: str) -> float:
    """A reported value.

    Raises:
        EvaluationError: it is missing, or not a finite number.
    """
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise EvaluationError(f"task {name}: {key} is {value!r}, expected a finite number: the model is not scored")
    return float(value)


def task_scores(measured: Mapping[str, Sequence[Measured]], config: EvaluationConfig) -> dict[str, TaskScore]:
    """Scores by task. A group's accuracy and chance level are the plain means of its members'; Matthews's correlation
    counts as (1 + mcc) / 2, which is the chance level of two choices for an empty guess.

    Raises:
        EvaluationError: an accuracy is missing, no number, or outside 0 to 1.
    """
    counted = config.averages[config.benchmark] if config.benchmark else config.tasks
    for name in OWN_TASKS:
        if any(member.questions != config.questions for member in measured.get(name, ())):
            raise EvaluationError(f"task {name}: not the expected {config.questions} questions were asked")
    return {
        name: _score(name, members, config.metrics.get(name, "acc"), name in counted, config.above_chance_z)
        for name, members in measured.items()
    }


def averages(scores: Mapping[str, TaskScore], config: EvaluationConfig) -> dict[str, float]:
    """The named means of the configuration, where all of their tasks were evaluated."""
    return {
        name: sum(scores[task].accuracy for task in tasks) / len(tasks)
        for name, tasks in config.averages.items()
        if set(tasks) <= set(scores)
    }


def benchmark(scores: Mapping[str, TaskScore]) -> float:
    """Mean accuracy of the tasks that are counted."""
    counted = [score.accuracy for score in scores.values() if score.counted]
    return sum(counted) / len(counted)


def _score(name: str, members: Sequence[Measured], metric: str, counted: bool, above: float) -> TaskScore:
    key = metric if "," in metric else f"{metric},none"
    accuracies = [_accuracy(name, member, key) for member in members]
    accuracy = sum(accuracies) / len(members)
    chance = sum(member.chance for member in members) / len(members)
    pairs = list(zip(accuracies, members, strict=True))
    stderr = _error([(share, member.questions) for share, member in pairs])
    # The larger spread of the two: a few right answers where chance is zero are not yet above it.
    spread = max(stderr, _error([(member.chance, member.questions) for _, member in pairs]))
    z = (accuracy - chance) / spread if spread else 0.0
    normalised = None
    if all("acc_norm,none" in member.values for member in members):
        normalised = sum(_accuracy(name, member, "acc_norm,none") for member in members) / len(members)
    return TaskScore(
        accuracy=accuracy,
        stderr=stderr,
        chance=chance,
        questions=sum(member.questions for member in members),
        metric=metric,
        normalised=normalised,
        z=z,
        above_chance=z > above,
        counted=counted,
    )


def _accuracy(name: str, member: Measured, key: str) -> float:
    value = number(name, member.values, key)
    if key == "mcc,none":  # a correlation, from -1 to 1
        value = (1 + value) / 2
    if not (0 <= value <= 1) or member.questions < 1:
        raise EvaluationError(
            f"task {name}: {key} is {value} of {member.questions} questions, expected a number from 0 to 1"
        )
    return value


def _error(shares: Sequence[tuple[float, int]]) -> float:
    """Binomial standard error of the mean of independent shares, each of so many questions."""
    return math.sqrt(math.fsum(share * (1 - share) / count for share, count in shares)) / len(shares)
