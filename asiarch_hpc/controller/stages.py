"""Stages: who goes on to a larger scale, what is trained there, and how it came out; pure, like `works`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from asiarch_hpc.config import Config, at_stage
from asiarch_hpc.controller.stage_state import StageState
from asiarch_hpc.controller.state import ExperimentState, RunState, WorkSpec
from asiarch_hpc.controller.trials import trials_of
from asiarch_hpc.records import BaselineStats, SeedSpread
from asiarch_hpc.search.baselines import baseline_stats
from asiarch_hpc.search.promotion import Contender, Decision, decide


def decisions(name: str, state: RunState, config: Config) -> tuple[Decision, ...]:
    """Who is promoted to a stage, once the scale before is done: exploration, or the stage before, is settled."""
    previous = _before(name, config)
    stats = state.stats if previous is None else state.stages[previous].stats
    contenders = list(_explored(state, config) if previous is None else _staged(previous, state, config))
    if not contenders:
        return ()
    return decide(contenders, reference=stats[0], baselines=stats, rule=config.stages[name].promote)


def trainings(state: RunState, config: Config) -> Iterator[WorkSpec]:
    """Trials of the stages that have been decided: the reference first, designs once it can be compared with.

    A stage to which nobody goes on trains no baselines either.
    """
    for name in config.stages:
        stage = state.stages.get(name)
        if stage is None or not stage.promoted:
            continue
        reference = state.baselines[config.baselines.reference]
        chosen = list(_baselines(name, state, config))
        ready = has_all(name, state.experiments[reference], state, config)
        chosen += [state.experiments[identifier] for identifier in stage.promoted if ready]
        for experiment in chosen:
            if experiment.id in stage.failures or experiment.id in stage.scores:
                continue
            beside = {"match": reference} if experiment.id != reference else {}
            if experiment.role != "baseline":
                beside["reference"] = reference
            for trial, seed in trials_of(experiment, at_stage(config, name)).items():
                yield WorkSpec(
                    key=f"train-{experiment.id}-{trial}",
                    kind="train",
                    function="jobs.train:run",
                    arguments={"experiment": experiment.id, "trial": trial, "seed": seed, "scale": name, **beside},
                    experiment=experiment.id,
                    trial=trial,
                    scale=name,
                    label=f"{experiment.name} {trial}",
                )


def has_all(name: str, experiment: ExperimentState, state: RunState, config: Config) -> bool:
    """Whether all trials of the experiment at the stage are evaluated."""
    return set(trials_of(experiment, at_stage(config, name))) <= set(
        state.stages[name].evaluations.get(experiment.id, {})
    )


def statistics(name: str, state: RunState, config: Config, known: SeedSpread | None) -> tuple[BaselineStats, ...]:
    """Statistics of a stage's baselines, reference first; empty while a trial is missing.

    A baseline that failed there is left out, unless it is the reference: then there are none. `known` is a spread over
    seeds that was measured before at this scale; the reference carries it.
    """
    stage, found = state.stages[name], []
    for experiment in _baselines(name, state, config):
        if experiment.id in stage.failures:
            if experiment.name == config.baselines.reference:
                return ()
            continue
        if not has_all(name, experiment, state, config):
            return ()
        report = replace(experiment.gate, parameters=stage.parameters[experiment.id])
        evaluations = list(stage.evaluations[experiment.id].values())
        found.append(baseline_stats(experiment.id, experiment.name, evaluations, report))
    return (replace(found[0], known=known), *found[1:])


def unscored(name: str, state: RunState, config: Config) -> list[ExperimentState]:
    """Experiments whose score at a stage can be computed now, in the order in which they were proposed."""
    stage = state.stages[name]
    return [
        experiment
        for experiment in state.experiments.values()
        if stage.stats
        and experiment.id not in stage.scores
        and experiment.id not in stage.failures
        and experiment.id in stage.evaluations
        and has_all(name, experiment, state, config)
    ]


def settled(stage: StageState) -> bool:
    """Whether nothing is to be expected of a stage any more."""
    if not stage.decided:
        return False
    closed = all(identifier in stage.scores or identifier in stage.failures for identifier in stage.promoted)
    return not stage.promoted or (bool(stage.stats) and closed)


def all_settled(state: RunState, config: Config) -> bool:
    """Whether every stage of the run is settled; true of a run without stages."""
    return all(name in state.stages and settled(state.stages[name]) for name in config.stages)


def due(name: str, state: RunState, config: Config, *, explored: bool) -> bool:
    """Whether the scale before a stage is done, so that the stage can be decided."""
    previous = _before(name, config)
    return explored if previous is None else previous in state.stages and settled(state.stages[previous])


def broken_reference(state: RunState, config: Config) -> str:
    """Why a stage has nothing to compare with, in words; empty: all is well."""
    reference = state.baselines.get(config.baselines.reference, "")
    for name, stage in state.stages.items():
        if reference in stage.failures:
            return f"{config.baselines.reference} could not be trained at {name}: {stage.failures[reference]}"
    return ""


def _before(name: str, config: Config) -> str | None:
    names = list(config.stages)
    position = names.index(name)
    return names[position - 1] if position else None


def _baselines(name: str, state: RunState, config: Config) -> Iterator[ExperimentState]:
    for baseline in (config.baselines.reference, *config.stages[name].baselines):
        yield state.experiments[state.baselines[baseline]]


def _explored(state: RunState, config: Config) -> Iterator[Contender]:
    for identifier, score in state.scores.items():
        experiment = state.experiments[identifier]
        if experiment.role == "candidate":
            yield Contender(
                score=score,
                runs=len(trials_of(experiment, config)),
                parameters=experiment.gate.parameters,
                seconds_per_token=experiment.gate.modelled_seconds_per_token,
            )


def _staged(name: str, state: RunState, config: Config) -> Iterator[Contender]:
    stage = state.stages[name]
    for identifier, score in stage.scores.items():
        experiment = state.experiments[identifier]
        if experiment.role == "candidate":
            yield Contender(
                score=score,
                runs=len(trials_of(experiment, at_stage(config, name))),
                parameters=stage.parameters[identifier],
                seconds_per_token=experiment.gate.modelled_seconds_per_token,
            )
