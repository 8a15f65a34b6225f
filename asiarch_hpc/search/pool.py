"""The candidate pool: immutable generations of the best experiments (ASI-Arch sections 3.2 and 4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from asiarch_hpc.config import SearchConfig
from asiarch_hpc.errors import EvaluationError, RecordError
from asiarch_hpc.records import BaselineStats, Generation, PoolEntry, Score


def build_generation(
    number: int,
    scored: Iterable[Score],
    baselines: Sequence[BaselineStats],
    config: SearchConfig,
    through_slot: int,
) -> Generation:
    """Ranks everything scored in slots below `through_slot`, and keeps the best `pool_size`.

    The baselines' own scores are part of `scored` (without a slot) and compete like the candidates. Ties are
    broken by id, so that the result depends on neither order nor repetition of the input.

    Raises:
        EvaluationError: no baselines, a baseline without a score, or a fitness that is not finite.
        RecordError: two different scores of one experiment, or scores of different formulas.
    """
    roles = {stats.experiment for stats in baselines}
    scored = tuple(scored)
    members = _members(scored, roles, through_slot)
    missing = sorted(stats.name for stats in baselines if stats.experiment not in members)
    if missing or not baselines:
        raise EvaluationError(
            f"generation {number}: baselines without a score: {missing or 'all'}; train them before the search starts"
        )
    formulas = sorted({s.formula for s in members.values()})
    if len(formulas) > 1:
        raise RecordError(
            f"generation {number}: scores of different formulas {formulas} cannot be ranked together; "
            "they were made by different versions, start a new run"
        )
    ranked = sorted(members.values(), key=lambda s: (-s.fitness, s.experiment))[: config.pool_size]
    return Generation(
        number=number,
        formula=formulas[0],
        through_slot=through_slot,
        entries=tuple(
            PoolEntry(
                rank=rank,
                id=s.experiment,
                fitness=s.fitness,
                fitness_sd=s.fitness_sd,
                role="baseline" if s.experiment in roles else "candidate",
            )
            for rank, s in enumerate(ranked, start=1)
        ),
        baselines=tuple(sorted(baselines, key=lambda b: b.experiment)),
        scored=scored_before(scored, through_slot),
    )


def scored_before(scored: Iterable[Score], through_slot: int) -> tuple[str, ...]:
    """Ids of all experiments scored below `through_slot` and not discarded, sorted (for policy `random`)."""
    return tuple(sorted({s.experiment for s in scored if s.discarded is None and _folded_in(s, through_slot)}))


def _folded_in(score: Score, through_slot: int) -> bool:
    return score.slot is None or score.slot < through_slot


def _members(scored: Iterable[Score], baselines: set[str], through_slot: int) -> dict[str, Score]:
    members: dict[str, Score] = {}
    for score in scored:
        if score.discarded is not None or not _folded_in(score, through_slot):
            continue
        if score.slot is None and score.experiment not in baselines:
            raise RecordError(f"score of {score.experiment}: no slot and no baseline; expected one of the two")
        if not math.isfinite(score.fitness):
            raise EvaluationError(f"score of {score.experiment}: fitness {score.fitness}, expected a finite number")
        if members.setdefault(score.experiment, score) != score:
            raise RecordError(
                f"two different scores of experiment {score.experiment}; keep one score.json, then `asiarch rebuild`"
            )
    return members
