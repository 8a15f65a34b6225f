"""`asiarch noise`: a run that trains one baseline with several seeds, and what later runs take from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asiarch_hpc.config import Config, at_stage, check, differences, to_dict
from asiarch_hpc.controller.state import RunState
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.records import SCHEMA_VERSION, BaselineStats, Evaluation, SeedSpread, from_json, to_json
from asiarch_hpc.search.baselines import spread_of
from asiarch_hpc.store.files import read_json, write_json
from asiarch_hpc.store.layout import RunLayout

# Settings that the spread does not depend on; it belongs to all others of their groups, and may be used by a run that
# has the same.
NO_CONDITIONS = {
    "data": frozenset({
        "shard_tokens", "processes", "serial_megabytes", "chunk_megabytes", "identity_megabytes",
        "claim_stale_seconds", "cache",
    }),
    "scale": frozenset({
        "name", "seeds", "micro_batch", "match", "memory_share", "memory_margin", "device", "compile", "engine",
        "zero_stage", "prefetch", "threads", "checkpoint_seconds", "step_seconds_limit", "step_multiple_limit",
        "leak_stop", "loss_limit", "loss_rise_limit", "gradient_limit", "keep_weights",
    }),
    "evaluation": frozenset({
        "suite", "data", "above_chance_z", "untrained_tokens", "batch_size", "min_margin", "causality_tolerance",
        "timeout_s", "devices", "gpu_pad_multiple", "logit_megabytes",
    }),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseRecord:
    """Seeds of one baseline that were trained for their spread alone (`noise.json`).

    `conditions` are the settings that the spread belongs to.
    """

    run: str
    stats: BaselineStats
    evaluations: tuple[Evaluation, ...]
    conditions: Mapping[str, Any]
    code: str
    created: str
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenNoise:
    """A run's copy of the records that it was given, by the names of its scales (`noise-given.json`)."""

    records: Mapping[str, NoiseRecord]
    schema_version: int = SCHEMA_VERSION


def noise_config(config: Config, *, design: str, seeds: int, scale: str) -> Config:
    """The configuration of a run that trains one design alone, with other seeds than runs have.

    Raises:
        ConfigError: no such scale, or too few seeds.
    """
    if scale and scale != config.scale.name:
        config = at_stage(config, scale)
    first = config.baselines.noise_seed
    single = replace(
        config,
        proposer="recombine",
        stages={},
        search=replace(config.search, designs=0),
        fitness=replace(config.fitness, judge="rule", noise=""),
        baselines=replace(config.baselines, reference=design, upper=design, seeds=list(range(first, first + seeds))),
    )
    check(single)
    return single


def write_noise(layout: RunLayout, state: RunState, config: Config, *, code: str) -> NoiseRecord:
    """The record of a noise run that is complete, written into it."""
    (stats,) = state.stats
    evaluations = state.experiments[stats.experiment].evaluations
    record = NoiseRecord(
        run=layout.name,
        stats=stats,
        evaluations=tuple(evaluations[trial] for trial in sorted(evaluations)),
        conditions=conditions(config),
        code=code,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
    write_json(layout.noise, to_json(record))
    return record


def take_noise(layout: RunLayout, config: Config) -> None:
    """Copies the records that `fitness.noise` names into the run, once, each for the scales of its conditions.

    Raises:
        ConfigError: no such file, conditions that no scale of the run has, seeds that the run trains itself, or two
            records for one scale.
        RecordError: a file is no noise record.
    """
    if not noise_files(config) or layout.given_noise.exists():
        return
    given: dict[str, NoiseRecord] = {}
    paths: dict[str, Path] = {}
    for path in map(Path, noise_files(config)):
        if not path.is_file():
            raise ConfigError(f"fitness.noise={path}: no such file; expected the noise.json that `asiarch noise` wrote")
        record = from_json(NoiseRecord, read_json(path), source=str(path))
        for scale in _scales_of(record, path, config):
            if scale in given:
                raise ConfigError(
                    f"fitness.noise: {paths[scale]} and {path} are both of scale {scale}; one for each scale was "
                    "expected, measure more seeds in one with `asiarch noise --seeds`"
                )
            given[scale], paths[scale] = record, path
    write_json(layout.given_noise, to_json(GivenNoise(records=given)))


def _scales_of(record: NoiseRecord, path: Path, config: Config) -> list[str]:
    """Names of the run's scales that have the record's conditions; at least one.

    Raises:
        ConfigError: there is none, or it trains the record's seeds itself.
    """
    scales = [at_stage(config, name) for name in (None, *config.stages)]
    lines = {s.scale.name: differences(dict(record.conditions), conditions(s)) for s in scales}
    nearest = min(lines, key=lambda name: len(lines[name]))
    if lines[nearest]:
        raise ConfigError(
            f"fitness.noise={path}: its spread belongs to other conditions than those of this run's scales "
            f"({', '.join(lines)}); from the nearest, {nearest}, it differs in\n  "
            + "\n  ".join(lines[nearest])
            + "\nmeasure the noise at a scale of this run with `asiarch noise --scale`, or leave this file out"
        )
    found = [s for s in scales if not lines[s.scale.name]]
    for own in found:
        # By seed alone: a scale of the same conditions trains the same under any name.
        endings = tuple(f"-s{seed}" for seed in own.baselines.seeds)
        if shared := sorted(e.trial for e in record.evaluations if e.trial.endswith(endings)):
            raise ConfigError(
                f"fitness.noise={path}: {shared} would count twice, as the run trains these seeds itself at "
                f"{own.scale.name}; other {'baselines.seeds' if own is config else 'baseline_seeds'} were expected"
            )
    return [own.scale.name for own in found]


def noise_files(config: Config) -> list[str]:
    """What `fitness.noise` names: nothing, one file, or several."""
    named = config.fitness.noise
    return list(named) if isinstance(named, list) else [named] if named else []


def known_spread(layout: RunLayout, config: Config, stage: str | None = None) -> SeedSpread | None:
    """The spread that the run was given for exploration or a stage, if any."""
    if not noise_files(config):
        return None
    given = from_json(GivenNoise, read_json(layout.given_noise), source=str(layout.given_noise))
    record = given.records.get(stage or config.scale.name)
    return None if record is None else spread_of(record.stats)


def conditions(config: Config) -> dict[str, Any]:
    """The settings that a spread belongs to."""
    found: Mapping[str, Any] = to_dict(config)
    return {
        group: {name: value for name, value in found[group].items() if name not in others}
        for group, others in NO_CONDITIONS.items()
    }
