"""What should run now: a pure function of the state, in order of urgency."""

from __future__ import annotations

from collections.abc import Iterator

from asiarch_hpc.config import Config
from asiarch_hpc.controller.state import ExperimentState, RunState, WorkSpec
from asiarch_hpc.search import population
from asiarch_hpc.search.population import Population


def wanted(state: RunState, config: Config) -> list[WorkSpec]:
    """Work that is neither done, failed nor under way: trainings first, then designs to train next."""
    specs = [*_baselines(state, config), *_trainings(state, config), *_proposals(state, config)]
    return [spec for spec in specs if spec.key not in state.outcomes and spec.key not in state.busy]


def trials_of(experiment: ExperimentState, config: Config) -> dict[str, int]:
    """Names and seeds of the trials that an experiment needs at the run's scale."""
    seeds = config.baselines.seeds if experiment.role == "baseline" else config.scale.seeds
    return {f"{config.scale.name}-s{seed}": seed for seed in seeds}


def baseline_names(config: Config) -> tuple[str, ...]:
    """Reference first, each once."""
    return tuple(dict.fromkeys((config.baselines.reference, config.baselines.upper)))


def _baselines(state: RunState, config: Config) -> Iterator[WorkSpec]:
    """The reference's measures are what the other baselines, and every candidate, are matched to."""
    reference = state.baselines.get(config.baselines.reference)
    for name in baseline_names(config):
        if name != config.baselines.reference and reference is None:
            continue
        yield WorkSpec(
            key=f"propose-{name}",
            kind="propose",
            function="jobs.propose:baseline",
            arguments={"design": name, "reference": None if name == config.baselines.reference else reference},
            label=f"baseline {name}",
        )


def _trainings(state: RunState, config: Config) -> Iterator[WorkSpec]:
    for experiment in state.experiments.values():
        if not experiment.gate.passed or experiment.id in state.scores or experiment.failures:
            continue
        for trial, seed in trials_of(experiment, config).items():
            yield WorkSpec(
                key=f"train-{experiment.id}-{trial}",
                kind="train",
                function="jobs.train:run",
                arguments={"experiment": experiment.id, "trial": trial, "seed": seed},
                experiment=experiment.id,
                trial=trial,
                label=f"{experiment.name} s{seed}",
            )


def _proposals(state: RunState, config: Config) -> Iterator[WorkSpec]:
    if not state.stats:
        return
    plan = population.plan(Population(state.slots, state.generations), config.search)
    for slot, attempt, generation in plan.propose:
        yield WorkSpec(
            key=f"propose-{slot:05d}-{attempt:02d}",
            kind="propose",
            function="jobs.propose:candidate",
            arguments={
                "slot": slot,
                "attempt": attempt,
                "generation": generation,
                "reference": state.baselines[config.baselines.reference],
            },
            slot=slot,
            attempt=attempt,
            label=f"slot {slot}" + (f" (try {attempt + 1})" if attempt else ""),
        )
