"""From evaluations to scores and pool generations; pure, the loop does the writing."""

from __future__ import annotations

from dataclasses import replace

from asiarch_hpc.config import Config
from asiarch_hpc.controller.state import ExperimentState, RunState
from asiarch_hpc.controller.trials import all_baselines, baseline_names, complete
from asiarch_hpc.controller.works import needs_assessment
from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.records import BaselineStats, Generation, Judgement, Score, SeedSpread
from asiarch_hpc.search import fitness, judge_rule, population
from asiarch_hpc.search.baselines import baseline_stats
from asiarch_hpc.search.pool import build_generation


def baselines(state: RunState, config: Config, known: SeedSpread | None) -> tuple[BaselineStats, ...]:
    """Statistics of exploration's baselines, reference first; empty while a trial is missing, or while a baseline of
    a later stage has not passed the gate: no design may be proposed that equals it.

    `known` is a spread over seeds that was measured before; the reference carries it.
    """
    if not set(all_baselines(config)) <= set(state.baselines):
        return ()
    experiments = [state.experiments[state.baselines[name]] for name in baseline_names(config)]
    if not all(complete(e, config) for e in experiments):
        return ()
    stats = [baseline_stats(e.id, e.name, list(e.evaluations.values()), e.gate) for e in experiments]
    return (replace(stats[0], known=known), *stats[1:])


def unscored(state: RunState, config: Config) -> list[ExperimentState]:
    """Experiments whose score can be computed now, in the order in which they were proposed."""
    if not state.stats:
        return []
    return [
        experiment
        for experiment in state.experiments.values()
        if experiment.id not in state.scores
        and not experiment.failures
        and complete(experiment, config)
        and not needs_assessment(experiment, config)
    ]


def score(experiment: ExperimentState, state: RunState, config: Config, stage: str | None = None) -> Score:
    """The fitness of one experiment, beside the baselines of the same scale; the grade is that of exploration.

    Raises:
        EvaluationError: its numbers cannot be believed.
    """
    stats = state.stats if stage is None else state.stages[stage].stats
    evaluations = experiment.evaluations if stage is None else state.stages[stage].evaluations[experiment.id]
    return fitness.score(
        [evaluations[trial] for trial in sorted(evaluations)],
        _judgement(experiment, state, config),
        reference=stats[0],
        baselines=stats,
        config=config.fitness,
        slot=experiment.slot,
    )


def _judgement(experiment: ExperimentState, state: RunState, config: Config) -> Judgement:
    """The grade: a language model's, its anchor for a baseline, or the rule's.

    Raises:
        EvaluationError: the language model gave none; a missing grade is never replaced.
    """
    if config.fitness.judge == "rule":
        return judge_rule.judge(experiment.name, experiment.gate, state.stats[0], config.fitness)
    if experiment.role == "baseline":
        upper = experiment.name == config.baselines.upper != config.baselines.reference
        grade = config.fitness.judge_upper if upper else config.fitness.judge_reference
        return Judgement(raw=grade, source="anchor", version="anchor/1", reasons=("an anchor of the judge's scale",))
    if experiment.judgement is None:
        raise EvaluationError(f"{experiment.name}: the judge gave no grade; see its transcript in the run's folder")
    return experiment.judgement


def generation(number: int, state: RunState, config: Config) -> Generation:
    """The pool generation of that number; a function of the closed slots alone."""
    through = population.through_slot(number, config.search)
    built = build_generation(number, list(state.scores.values()), state.stats, config.search, through)
    tried = (e.id for e in state.experiments.values() if e.slot is None or e.slot < through)
    return replace(built, tried=tuple(sorted(tried)))
