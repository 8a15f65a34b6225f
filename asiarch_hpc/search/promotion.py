"""Which designs go on to a larger scale, and why (ASI-Arch, arXiv 2507.18074, sections 3.5 and 4.2).

A design goes on when it beats the reference baseline in loss and benchmark at the scale before, and is neither too
large nor too costly; of those the best. The paper compares single runs with single runs: here the differences may be
asked to exceed the baselines' spread over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asiarch_hpc.config import PromotionConfig
from asiarch_hpc.records import BaselineStats, Score
from asiarch_hpc.search.baselines import difference_sd, seed_spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A design as it stands at the scale before: its score, the runs behind it, its size, and its modelled cost."""

    score: Score
    runs: int
    parameters: int
    seconds_per_token: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether a design goes on to a stage. `rank` counts those that qualify from 1; None: it does not qualify."""

    experiment: str
    promoted: bool
    reason: str
    rank: int | None = None


def decide(
    contenders: Iterable[Contender],
    *,
    reference: BaselineStats,
    baselines: Sequence[BaselineStats],
    rule: PromotionConfig,
) -> tuple[Decision, ...]:
    """The decision on each contender: those that qualify in order of rank, then the others in order of id.

    A function of its arguments alone; the order of the contenders makes no difference.

    Args:
        reference: the baseline that is to be beaten, at the contenders' scale.
        baselines: all baselines of that scale; their pooled spread over seeds is the noise.

    Raises:
        EvaluationError: the baselines have no usable spread.
    """
    qualified: list[tuple[Contender, str]] = []
    refused: list[Decision] = []
    for contender in sorted(contenders, key=lambda c: c.score.experiment):
        objection, standing = _examine(contender, reference, baselines, rule)
        if objection:
            refused.append(Decision(experiment=contender.score.experiment, promoted=False, reason=objection))
        else:
            qualified.append((contender, standing))
    qualified.sort(key=lambda item: _merit(item[0].score, rule))
    ranked = []
    for rank, (contender, standing) in enumerate(qualified, start=1):
        chosen = rule.top == 0 or rank <= rule.top
        limit = "" if chosen else f"; only the first {rule.top} go on"
        ranked.append(
            Decision(
                experiment=contender.score.experiment,
                promoted=chosen,
                rank=rank,
                reason=f"rank {rank} of {len(qualified)} by {rule.by}{limit}; {standing}",
            )
        )
    return (*ranked, *refused)


def _merit(score: Score, rule: PromotionConfig) -> tuple[float, str]:
    """Sorts the best first; ties go by id."""
    return (score.loss if rule.by == "loss" else -score.fitness, score.experiment)


def _examine(
    contender: Contender, reference: BaselineStats, baselines: Sequence[BaselineStats], rule: PromotionConfig
) -> tuple[str, str]:
    """What speaks against a contender (empty: nothing), and how it stands beside the reference."""
    score, name = contender.score, reference.name
    if score.discarded is not None:
        return f"discarded: {score.discarded}", ""
    if not all(map(math.isfinite, (score.loss, score.benchmark, score.fitness))):
        return "its loss, benchmark or fitness is no number", ""
    spread = seed_spread([reference, *baselines])
    loss, benchmark = score.loss - reference.loss_mean, score.benchmark - reference.benchmark_mean
    loss_sd = difference_sd(spread.loss, contender.runs, reference.seeds)
    benchmark_sd = difference_sd(spread.benchmark, contender.runs, reference.seeds)
    size = contender.parameters / reference.parameters if reference.parameters else math.inf
    cost = contender.seconds_per_token / reference.modelled_seconds_per_token
    standing = (
        f"loss {loss:+.4f} ({_multiples(loss, loss_sd)}) and benchmark {benchmark:+.4f} "
        f"({_multiples(benchmark, benchmark_sd)}) against {name}, {size:.2f} times its parameters, "
        f"{cost:.2f} times its time"
    )
    objections = [
        (size <= rule.max_parameters_ratio, f"too large: at most {rule.max_parameters_ratio:g} times the parameters"),
        (cost <= rule.max_cost_ratio, f"too costly: at most {rule.max_cost_ratio:g} times the modelled time"),
    ]
    if rule.beat_baseline:
        objections += [
            (loss < 0.0, f"its loss is not below {name}'s"),
            (
                loss <= -rule.min_noise_multiples * loss_sd,
                f"its loss is not below {name}'s by {rule.min_noise_multiples:g} standard deviations",
            ),
            (
                benchmark > -rule.benchmark_slack * benchmark_sd,
                f"its benchmark is not above {name}'s"
                + (f" less {rule.benchmark_slack:g} standard deviations" if rule.benchmark_slack else ""),
            ),
        ]
    found = [text for holds, text in objections if not holds]
    return (f"{'; '.join(found)}; {standing}" if found else ""), standing


def _multiples(value: float, sd: float) -> str:
    return f"{value / sd:+.1f} sd" if sd > 0.0 else "no spread"
