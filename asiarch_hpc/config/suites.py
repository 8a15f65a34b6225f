"""Named suites of evaluation tasks: files of `configs/suites` that stand below the settings that name them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from asiarch_hpc.config.schema import EvaluationConfig
from asiarch_hpc.errors import ConfigError


def with_suites(layer: Any, folder: Path) -> Any:
    """A layer of the configuration, in which each `evaluation` that names a suite holds the suite's settings too.

    Raises:
        ConfigError: no such suite.
    """
    if isinstance(layer, DictConfig):
        for parent in _parents(layer):
            section = parent.get("evaluation")
            if isinstance(section, DictConfig) and section.get("suite"):
                parent.evaluation = OmegaConf.merge(_read(str(section.suite), folder), section)
    return layer


def evaluation_problems(evaluation: EvaluationConfig, where: str) -> list[tuple[bool, str]]:
    """What must hold for the tasks, each with the message for when it does not; see `loading.check`."""
    tasks, means = evaluation.tasks, evaluation.averages
    counted = means.get(evaluation.benchmark, [])
    return [
        (len(set(tasks)) == len(tasks), f"{where}.tasks={tasks}: each task once"),
        (evaluation.devices >= 0, f"{where}.devices={evaluation.devices}: a number of processes, or 0 for all GPUs,"),
        (evaluation.limit >= 0, f"{where}.limit={evaluation.limit}: a number of documents, or 0 for all,"),
        (all(means.values()), f"{where}.averages={means}: at least one task in each"),
        (
            not evaluation.benchmark or bool(counted),
            f"{where}.benchmark={evaluation.benchmark!r}: one of the averages {sorted(means)}, or nothing",
        ),
        (
            set(counted) <= set(tasks),
            f"{where}.benchmark={evaluation.benchmark}: an average over tasks that are evaluated (not "
            f"{sorted(set(counted) - set(tasks))})",
        ),
    ]


def _parents(layer: DictConfig) -> Iterator[DictConfig]:
    """What may hold an `evaluation`: the configuration itself, and its stages."""
    yield layer
    stages = layer.get("stages")
    if isinstance(stages, DictConfig):
        yield from (stage for stage in stages.values() if isinstance(stage, DictConfig))


def _read(name: str, folder: Path) -> Any:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise ConfigError(f"evaluation.suite={name!r}: one of {known} was expected")
    return OmegaConf.load(path)
