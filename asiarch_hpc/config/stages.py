"""Stages of a run: scales that lie beyond `scale`, each a configuration of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from asiarch_hpc.config.schema import Config
from asiarch_hpc.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,31}")  # part of the names of trials, and of dotted overrides


def resolve_stages(merged: DictConfig, given: Any) -> None:
    """Lets each stage of `merged` inherit what its own layers, `given` by name, leave unset.

    Raises:
        ConfigError: a scale with another name than its stage.
    """
    for name, own in given.items():
        stage = merged.stages[name]
        bases = {"scale": merged.scale, "evaluation": merged.evaluation, "train": merged.executor.train}
        for part, base in bases.items():
            stage[part] = OmegaConf.merge(base, (own or {}).get(part) or {})
        wanted = ((own or {}).get("scale") or {}).get("name", name)
        if wanted != name:
            raise ConfigError(f"stages.{name}.scale.name={wanted!r}: the stage's name was expected, or nothing")
        stage.scale.name = name


def at_stage(config: Config, stage: str | None) -> Config:
    """The configuration as trainings of a stage see it; of exploration, for None.

    Its `scale`, `evaluation`, `executor.train` and `baselines.seeds` are the stage's.

    Raises:
        ConfigError: no such stage.
    """
    if stage is None:
        return config
    if stage not in config.stages:
        raise ConfigError(f"stage {stage!r}: one of {list(config.stages)} was expected")
    own = config.stages[stage]
    return replace(
        config,
        scale=own.scale,
        evaluation=own.evaluation,
        executor=replace(config.executor, train=own.train),
        baselines=replace(config.baselines, seeds=own.baseline_seeds),
    )


def stage_of(trial: str, config: Config) -> str | None:
    """The stage that a trial belongs to by its name; None: exploration, or no stage of this run."""
    return next((name for name in config.stages if re.fullmatch(f"{name}-s[0-9]+", trial)), None)


def stage_problems(config: Config) -> list[tuple[bool, str]]:
    """What must hold for the stages, each with the message for when it does not; see `loading.check`."""
    problems: list[tuple[bool, str]] = []
    for name, stage in config.stages.items():
        rule, where = stage.promote, f"stages.{name}"
        beside = [config.baselines.reference, *stage.baselines]
        problems += [
            (bool(NAME.fullmatch(name)), f"{where}: a name of letters, digits and '_'"),
            (name != config.scale.name, f"{where}: another name than that of the run's own scale"),
            (rule.by in ("fitness", "loss"), f"{where}.promote.by={rule.by!r}: fitness or loss"),
            (rule.top >= 0, f"{where}.promote.top={rule.top}: a number of designs, or 0 for all,"),
            (
                rule.min_noise_multiples >= 0 and rule.benchmark_slack >= 0,
                f"{where}.promote: min_noise_multiples and benchmark_slack of 0 or more",
            ),
            (
                rule.max_parameters_ratio > 0 and rule.max_cost_ratio > 0,
                f"{where}.promote: positive max_parameters_ratio and max_cost_ratio",
            ),
            (
                len(set(beside)) == len(beside),
                f"{where}.baselines={stage.baselines}: each once, the reference not among them,",
            ),
            (
                len(set(stage.baseline_seeds)) == len(stage.baseline_seeds) >= 3,
                f"{where}.baseline_seeds={stage.baseline_seeds}: at least three seeds, each once,",
            ),
        ]
    return problems
