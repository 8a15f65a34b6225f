"""The composite fitness of ASI-Arch (arXiv 2507.18074, sections 3.1 and 4.1), with its noise.

    fitness = 1/3 * [ sigmoid(s * clip((L0 - L) / (b * L0), -1, 1))
                    + sigmoid(s * clip((B - B0) / (b * B0), -1, 1))
                    + (judge - 1) / 9 ]

L is the held-out loss, B the benchmark, index 0 the reference baseline's mean, b the band (10 %) and s the
sigmoid's scale. The paper leaves s open; s = 6 reproduces the published scores, which are the sum, not the mean,
of the three parts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from asiarch_hpc.config import FitnessConfig
from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.records import BaselineStats, Evaluation, Judgement, Score, SeedSpread
from asiarch_hpc.search.baselines import checked_evaluations, seed_spread

LOWEST_GRADE, HIGHEST_GRADE = 1.0, 10.0  # the judge's scale
GRID = 64  # points that stand for a normal distribution


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The four measured numbers that enter the formula."""

    loss: float
    reference_loss: float
    benchmark: float
    reference_benchmark: float


def formula(config: FitnessConfig) -> str:
    """Name, version and constants of the fitness; scores of different formulas cannot be compared."""
    return f"asi_arch/2 scale={config.sigmoid_scale:g} band={config.band:g} leak={config.leak_margin:g}"


def parts(measured: Measured, grade: float, config: FitnessConfig) -> tuple[float, float, float]:
    """Loss part, benchmark part and judge part, each in [0, 1]; the fitness is their mean."""
    loss_gain, benchmark_gain = _gains(measured, config)
    judged = (grade - LOWEST_GRADE) / (HIGHEST_GRADE - LOWEST_GRADE)
    return _squash(loss_gain, config), _squash(benchmark_gain, config), judged


def score(
    evaluations: Sequence[Evaluation],
    judgement: Judgement,
    *,
    reference: BaselineStats,
    baselines: Sequence[BaselineStats],
    config: FitnessConfig,
    slot: int | None = None,
) -> Score:
    """Fitness of one experiment from the evaluations of its trials (one per seed).

    `fitness_sd` says how much the fitness would vary if the design and the reference were trained again with
    other seeds. A design whose loss lies more than `leak_margin` below that of the best baseline is `discarded`, as
    it can only know the next token from the future; the baselines themselves are exempt, they set the measure.

    Args:
        reference: the baseline whose means are L0 and B0.
        baselines: all baselines; their pooled spread is the noise of one run.
        slot: the search's place of the design, None for baselines.

    Raises:
        EvaluationError: a number is missing, not finite, negative or out of range; the reference's benchmark
            is zero; the grade is not between 1 and 10.
    """
    checked_evaluations(evaluations)
    experiment = evaluations[0].experiment
    if not LOWEST_GRADE <= judgement.raw <= HIGHEST_GRADE:
        raise EvaluationError(f"experiment {experiment}: judge's grade {judgement.raw!r}, expected 1 to 10")
    for name, value in (("loss", reference.loss_mean), ("benchmark", reference.benchmark_mean)):
        if not (math.isfinite(value) and value > 0.0):
            raise EvaluationError(
                f"baseline {reference.name}: mean {name} {value!r}, expected a positive number; "
                "differences are measured as a share of it, so train the baseline again"
            )
    measured = Measured(
        loss=statistics.fmean(e.loss for e in evaluations),
        reference_loss=reference.loss_mean,
        benchmark=statistics.fmean(e.benchmark for e in evaluations),
        reference_benchmark=reference.benchmark_mean,
    )
    loss_part, benchmark_part, judge_part = parts(measured, judgement.raw, config)
    spread = seed_spread([reference, *baselines])
    exempt = experiment in {reference.experiment, *(b.experiment for b in baselines)}
    return Score(
        experiment=experiment,
        fitness=(loss_part + benchmark_part + judge_part) / 3.0,
        fitness_sd=_fitness_sd(measured, config, _sds(evaluations, reference, spread)),
        loss_part=loss_part,
        benchmark_part=benchmark_part,
        judge_part=judge_part,
        loss=measured.loss,
        bits_per_byte=statistics.fmean(e.bits_per_byte for e in evaluations),
        benchmark=measured.benchmark,
        judgement=judgement,
        formula=formula(config),
        discarded=None if exempt else _leak(measured.loss, [reference, *baselines], config),
        slot=slot,
    )


def _gains(measured: Measured, config: FitnessConfig) -> tuple[float, float]:
    """Improvement of loss and benchmark, in units of the band; positive is better."""
    loss = (measured.reference_loss - measured.loss) / (config.band * measured.reference_loss)
    benchmark = (measured.benchmark - measured.reference_benchmark) / (config.band * measured.reference_benchmark)
    return loss, benchmark


def _squash(gain: float, config: FitnessConfig) -> float:
    clipped = max(-1.0, min(1.0, gain))
    return 1.0 / (1.0 + math.exp(-config.sigmoid_scale * clipped))


def _leak(loss: float, baselines: Sequence[BaselineStats], config: FitnessConfig) -> str | None:
    """Measured at the best baseline: a weak reference must not make leaks of honest designs."""
    best = min(baselines, key=lambda stats: stats.loss_mean)
    if loss >= best.loss_mean * (1.0 - config.leak_margin):
        return None
    below = 100.0 * (1.0 - loss / best.loss_mean)
    return (
        f"leak: loss {loss:.4f} is {below:.1f} % below {best.name}'s {best.loss_mean:.4f}, "
        f"more than the {100.0 * config.leak_margin:g} % that an honest design can gain"
    )


def _sds(evaluations: Sequence[Evaluation], reference: BaselineStats, spread: SeedSpread) -> Measured:
    """Standard deviation of each measured number.

    More seeds shrink the spread over seeds, but not the sampling noise of the questions, which all runs share.
    """
    runs = len(evaluations)
    return Measured(
        loss=spread.loss / math.sqrt(runs),
        reference_loss=spread.loss / math.sqrt(reference.seeds),
        benchmark=max(spread.benchmark / math.sqrt(runs), statistics.fmean(map(_question_noise, evaluations))),
        reference_benchmark=spread.benchmark / math.sqrt(reference.seeds),
    )


def _question_noise(evaluation: Evaluation) -> float:
    """Standard error of the benchmark, from the finite number of questions."""
    counted = [task.stderr for task in evaluation.tasks.values() if task.counted]
    return math.sqrt(math.fsum(stderr**2 for stderr in counted)) / len(counted)


def _fitness_sd(measured: Measured, config: FitnessConfig, sds: Measured) -> float:
    """Carries the noise of the measured numbers through the formula.

    Up to the gains, the formula is almost linear: central differences of one deviation. Beyond, it bends and
    saturates within the noise, where a slope says little: the spread of the parts over evenly likely gains. The
    judge's grade is taken as exact.
    """
    middle = _gains(measured, config)
    squares = [0.0, 0.0]
    for field in ("loss", "reference_loss", "benchmark", "reference_benchmark"):
        value, step = getattr(measured, field), getattr(sds, field)
        low = max(value - step, 1e-6 * value)  # a reference mean of zero has no relative differences
        below, above = (_gains(replace(measured, **{field: x}), config) for x in (low, value + step))
        squares = [total + ((b - a) / 2.0) ** 2 for total, a, b in zip(squares, below, above, strict=True)]
    spreads = [
        statistics.pstdev(_squash(gain + math.sqrt(square) * z, config) for z in _normal_grid())
        for gain, square in zip(middle, squares, strict=True)
    ]
    return math.hypot(*spreads) / 3.0


@cache
def _normal_grid() -> tuple[float, ...]:
    """Evenly likely draws of a standard normal variable."""
    normal = statistics.NormalDist()
    return tuple(normal.inv_cdf((i + 0.5) / GRID) for i in range(GRID))
