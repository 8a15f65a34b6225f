"""Which trials an experiment needs, and which baselines a run has."""

from __future__ import annotations

from asiarch_hpc.config import Config
from asiarch_hpc.controller.state import ExperimentState


def trials_of(experiment: ExperimentState, config: Config) -> dict[str, int]:
    """Names and seeds of the trials that an experiment needs at the configuration's scale."""
    seeds = config.baselines.seeds if experiment.role == "baseline" else config.scale.seeds
    return {f"{config.scale.name}-s{seed}": seed for seed in seeds}


def complete(experiment: ExperimentState, config: Config) -> bool:
    """Whether all trials of the experiment are evaluated."""
    return set(trials_of(experiment, config)) <= set(experiment.evaluations)


def baseline_names(config: Config) -> tuple[str, ...]:
    """Baselines of exploration: reference first, each once."""
    return tuple(dict.fromkeys((config.baselines.reference, config.baselines.upper)))


def all_baselines(config: Config) -> tuple[str, ...]:
    """Those of exploration, then those of the stages alone, which pass the gate at once and are trained there."""
    further = (name for stage in config.stages.values() for name in stage.baselines)
    return tuple(dict.fromkeys((*baseline_names(config), *further)))
