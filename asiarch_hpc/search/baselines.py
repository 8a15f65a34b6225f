"""Seed spread of the baselines: the yardstick of every comparison, and the noise that it carries."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.records import BaselineStats, Evaluation, GateReport, Score, SeedSpread
from asiarch_hpc.search.student import noise_multiple

LEAST_SEEDS = 3  # fewer give no usable standard deviation (design, truth rule 3)


@dataclass(frozen=True, slots=True)
class Difference:
    """Loss minus the reference's (nats per token), the standard deviation of that, and what follows from both.

    `freedom` are the degrees of freedom of the standard deviation, `limit` the deviations that count as noise.
    """

    value: float
    sd: float
    verdict: Literal["reference", "within noise", "noise unknown", "better", "worse"]
    freedom: int = 0
    limit: float = math.nan

    @property
    def t(self) -> float:
        """Student's t of the difference; NaN where the noise is unknown or none."""
        return self.value / self.sd if self.sd > 0.0 else math.nan


def checked_evaluations(evaluations: Sequence[Evaluation]) -> Sequence[Evaluation]:
    """The same evaluations, once every number in them can be believed.

    Raises:
        EvaluationError: none given, several experiments mixed, one trial twice, a number that is missing, not
            finite, negative or out of range, or a loss that is not below the untrained and the uniform loss.
    """
    if not evaluations:
        raise EvaluationError("no evaluation: at least one finished trial is needed before a score; train it first")
    owners = sorted({e.experiment for e in evaluations})
    if len(owners) > 1:
        raise EvaluationError(f"evaluations of several experiments {owners}: expected those of one; check the records")
    trials = [e.trial for e in evaluations]
    if len(set(trials)) < len(trials):
        raise EvaluationError(f"experiment {owners[0]}: trials {trials} name one trial twice; give each trial once")
    for evaluation in evaluations:
        _check(evaluation)
    return evaluations


def baseline_stats(experiment: str, name: str, evaluations: Sequence[Evaluation], report: GateReport) -> BaselineStats:
    """Mean and sample standard deviation (n - 1) of one baseline's seeds, with its measured cost.

    Raises:
        EvaluationError: fewer than three trials, numbers that cannot be believed, another experiment's
            evaluations, or a gate report without measurements.
    """
    checked_evaluations(evaluations)
    if len(evaluations) < LEAST_SEEDS:
        raise EvaluationError(
            f"baseline {name}: {len(evaluations)} evaluated seeds, expected at least {LEAST_SEEDS}; "
            "train the missing seeds (baselines.seeds) before anything is compared with them"
        )
    if evaluations[0].experiment != experiment:
        raise EvaluationError(
            f"baseline {name}: evaluations of experiment {evaluations[0].experiment}, expected {experiment}"
        )
    checked_report(report, name)
    losses = [e.loss for e in evaluations]
    benchmarks = [e.benchmark for e in evaluations]
    bits = [e.bits_per_byte for e in evaluations]
    return BaselineStats(
        experiment=experiment,
        name=name,
        seeds=len(evaluations),
        loss_mean=statistics.fmean(losses),
        loss_sd=statistics.stdev(losses),
        benchmark_mean=statistics.fmean(benchmarks),
        benchmark_sd=statistics.stdev(benchmarks),
        bits_per_byte_mean=statistics.fmean(bits),
        bits_per_byte_sd=statistics.stdev(bits),
        flops_per_token=report.flops_per_token,
        modelled_seconds_per_token=report.modelled_seconds_per_token,
        time_exponent=report.time_exponent,
        parameters=report.parameters,
    )


def checked_report(report: GateReport, name: str) -> GateReport:
    """The same gate report, once it is a passed one with usable measurements.

    Raises:
        EvaluationError: the gate was not passed, or time, growth or parameters were not measured.
    """
    if not report.passed:
        raise EvaluationError(f"{name}: the gate rejected this design, so it cannot have a score; check gate.json")
    for field in ("modelled_seconds_per_token", "parameters", "time_exponent"):
        value = float(getattr(report, field))
        if not (math.isfinite(value) and value > 0.0):
            raise EvaluationError(
                f"{name}: gate report says {field}={value}, expected a positive number; run the gate again"
            )
    return report


def seed_spread(baselines: Iterable[BaselineStats]) -> SeedSpread:
    """Pools the sample variances of the baselines, weighted by their degrees of freedom; each baseline counts once.

    What was known before counts like a further baseline.

    Raises:
        EvaluationError: no baseline, or one with fewer than two seeds or a spread that is not finite.
    """
    distinct = {b.experiment: b for b in baselines}
    if not distinct:
        raise EvaluationError("no baseline statistics: train the baselines before anything is compared with them")
    for stats in distinct.values():
        own = (stats.loss_sd, stats.benchmark_sd, stats.bits_per_byte_sd)
        if stats.seeds < 2 or not all(math.isfinite(sd) and sd >= 0.0 for sd in own):
            raise EvaluationError(
                f"baseline {stats.name}: {stats.seeds} seeds with standard deviations {own}; "
                "expected at least two seeds and finite numbers"
            )
    spreads = [spread_of(b) for b in distinct.values()] + [b.known for b in distinct.values() if b.known is not None]
    freedom = sum(spread.freedom for spread in spreads)

    def pooled(field: str) -> float:
        return math.sqrt(math.fsum(getattr(spread, field) ** 2 * spread.freedom for spread in spreads) / freedom)

    return SeedSpread(
        loss=pooled("loss"), benchmark=pooled("benchmark"), bits_per_byte=pooled("bits_per_byte"), freedom=freedom
    )


def spread_of(stats: BaselineStats) -> SeedSpread:
    """The spread of one baseline's own seeds."""
    return SeedSpread(
        loss=stats.loss_sd,
        benchmark=stats.benchmark_sd,
        bits_per_byte=stats.bits_per_byte_sd,
        freedom=stats.seeds - 1,
    )


def difference_sd(single_run_sd: float, runs: int, reference_runs: int) -> float:
    """Standard deviation of (mean of `runs` runs) - (mean of `reference_runs` runs) with equal single-run noise."""
    assert runs >= 1, runs
    assert reference_runs >= 1, reference_runs
    return single_run_sd * math.sqrt(1.0 / runs + 1.0 / reference_runs)


def loss_difference(
    score: Score, runs: int, reference: BaselineStats, baselines: Iterable[BaselineStats], level: float
) -> Difference:
    """Loss of an experiment with `runs` trials against the reference's mean. What noise alone does with a chance of
    `level` counts as noise (Student's t with as many degrees of freedom as the baselines' seeds give).

    The verdict speaks of one comparison, not of the best of many. Without a usable spread nothing is called better.
    """
    value = score.loss - reference.loss_mean
    try:
        spread = seed_spread([reference, *baselines])
        sd, freedom = difference_sd(spread.loss, max(1, runs), reference.seeds), spread.freedom
    except EvaluationError:
        sd, freedom = math.nan, 0
    if score.experiment == reference.experiment:
        return Difference(value, sd, "reference", freedom)
    if not (math.isfinite(value) and math.isfinite(sd) and sd > 0.0):
        return Difference(value, sd, "noise unknown", freedom)
    limit = noise_multiple(level, freedom)
    if not abs(value) > limit * sd:
        return Difference(value, sd, "within noise", freedom, limit)
    return Difference(value, sd, "better" if value < 0.0 else "worse", freedom, limit)


def _check(evaluation: Evaluation) -> None:
    where = f"experiment {evaluation.experiment}, trial {evaluation.trial}"
    positive = ("loss", "bits_per_byte", "untrained_loss", "untrained_bits_per_byte", "uniform_loss")
    for field in positive:
        value = getattr(evaluation, field)
        if not _number(value) or not value > 0.0:
            raise EvaluationError(f"{where}: {field}={value!r}, expected a positive finite number; evaluate it again")
    if not _number(evaluation.benchmark) or not 0.0 <= evaluation.benchmark <= 1.0:
        raise EvaluationError(
            f"{where}: benchmark={evaluation.benchmark!r}, expected a share between 0 and 1; evaluate it again"
        )
    if not evaluation.tasks:
        raise EvaluationError(f"{where}: no task scores, expected those that the benchmark is the mean of")
    for name, task in evaluation.tasks.items():
        if not _number(task.stderr) or not task.stderr >= 0.0:
            raise EvaluationError(f"{where}: task {name} has stderr={task.stderr!r}, expected a number >= 0")
    for limit in ("untrained_loss", "uniform_loss"):
        if not evaluation.loss < getattr(evaluation, limit):
            raise EvaluationError(
                f"{where}: loss {evaluation.loss:.4f} is not below {limit} {getattr(evaluation, limit):.4f}; "
                "these weights look untrained and get no score"
            )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
