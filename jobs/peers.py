"""What a training is held against while it runs: the baselines' curves, and those of earlier designs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from asiarch_hpc.config import stage_of
from asiarch_hpc.records import Generation, from_json
from asiarch_hpc.search import early_stopping
from asiarch_hpc.store.curves import read_curves
from asiarch_hpc.store.experiments import read_experiment
from asiarch_hpc.store.files import read_json
from asiarch_hpc.training.monitor import Peers
from jobs.workspace import Workspace


def peers(space: Workspace, identifier: str, trial: str, reference: str | None) -> Peers | None:
    """How others trained at this scale; None for a baseline, and while the reference has no curves.

    Args:
        identifier: the experiment that is to be trained.
        trial: the name of its trial; earlier designs' trials of that name saw the same batches.
        reference: id of the reference baseline, None for the baselines themselves.
    """
    if reference is None:
        return None
    scale = space.config.scale
    seeds = [f"{scale.name}-s{seed}" for seed in space.config.baselines.seeds]
    trials = [space.layout.experiment(reference).trial(name) for name in seeds]
    trained = [folder for folder in trials if folder.curves.exists()]
    columns = [read_curves(folder.curves) for folder in trained]
    if not columns:
        return None
    devices = {read_json(folder.record)["device"] for folder in trained if folder.record.exists()}
    steps = min(len(column["loss"]) for column in columns)
    losses = [sum(float(column["loss"][step]) for column in columns) / len(columns) for step in range(steps)]
    seconds = [float(value) for column in columns for value in column["step_seconds"]]
    return Peers(
        losses,
        statistics.median(seconds),
        device=devices.pop() if len(devices) == 1 else "",
        limits=_limits(space, identifier, trial, seeds),
        window=early_stopping.window_steps(scale.steps, space.config.search.early_stopping),
    )


def _limits(space: Workspace, identifier: str, trial: str, seeds: list[str]) -> dict[int, float]:
    """Rungs and their losses, from the designs that the experiment's pool generation knew.

    Of exploration alone: which designs other stages know depends on when they were promoted.
    """
    config, steps = space.config.search.early_stopping, space.config.scale.steps
    if stage_of(trial, space.config) is not None or not early_stopping.rung_steps(steps, config):
        return {}
    path = space.layout.generation(read_experiment(space.layout.experiment(identifier)).generation)
    generation = from_json(Generation, read_json(path), source=str(path))
    baselines = [stats.experiment for stats in generation.baselines]
    designs = [other for other in generation.tried if other not in baselines]
    return early_stopping.loss_limits(
        _curves(space, designs, [trial]),
        [_curves(space, [baseline], seeds) for baseline in baselines],
        steps=steps,
        config=config,
    )


def _curves(space: Workspace, designs: Iterable[str], trials: list[str]) -> list[list[float]]:
    paths = (space.layout.experiment(design).trial(trial).curves for design in designs for trial in trials)
    return [read_curves(path, "loss")["loss"].tolist() for path in paths if path.exists()]
