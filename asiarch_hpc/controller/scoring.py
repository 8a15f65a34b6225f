"""From evaluations to scores and pool generations; pure, the loop does the writing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from asiarch_hpc.config import Config
from asiarch_hpc.controller.state import ExperimentState, RunState
from asiarch_hpc.controller.works import baseline_names, trials_of
from asiarch_hpc.records import BaselineStats, Generation, Score
from asiarch_hpc.search import fitness, judge_rule, population
from asiarch_hpc.search.baselines import baseline_stats
from asiarch_hpc.search.pool import build_generation, scored_before


def baselines(state: RunState, config: Config) -> tuple[BaselineStats, ...]:
    """Statistics of all baselines, reference first; empty while a trial is missing."""
    names = baseline_names(config)
    experiments = [state.experiments[state.baselines[name]] for name in names if name in state.baselines]
    if len(experiments) < len(names) or not all(complete(e, config) for e in experiments):
        return ()
    return tuple(baseline_stats(e.id, e.name, list(e.evaluations.values()), e.gate) for e in experiments)


def complete(experiment: ExperimentState, config: Config) -> bool:
    """Whether all trials of the experiment are evaluated."""
    return set(trials_of(experiment, config)) <= set(experiment.evaluations)


def unscored(state: RunState, config: Config) -> Iterator[Score]:
    """Scores that can be computed now, in the order in which the designs were proposed."""
    if not state.stats:
        return
    reference = state.stats[0]
    for experiment in state.experiments.values():
        if experiment.id in state.scores or experiment.failures or not complete(experiment, config):
            continue
        evaluations = [experiment.evaluations[trial] for trial in sorted(experiment.evaluations)]
        judgement = judge_rule.judge(experiment.name, experiment.gate, reference, config.fitness)
        yield fitness.score(
            evaluations,
            judgement,
            reference=reference,
            baselines=state.stats,
            config=config.fitness,
            slot=experiment.slot,
        )


def generation(number: int, state: RunState, config: Config) -> Generation:
    """The pool generation of that number; a function of the closed slots alone."""
    through = population.through_slot(number, config.search)
    scores = list(state.scores.values())
    built = build_generation(number, scores, state.stats, config.search, through)
    tried = (e.id for e in state.experiments.values() if e.slot is None or e.slot < through)
    return replace(built, scored=scored_before(scores, through), tried=tuple(sorted(tried)))
