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
        "leak_stop", "loss_limit", "keep_weights",
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
    """Copies the record that `fitness.noise` names into the run, once.

    Raises:
        ConfigError: no such file, other conditions than the run's, or seeds that the run trains itself.
        RecordError: it is no noise record.
    """
    if not config.fitness.noise or layout.noise.exists():
        return
    path = Path(config.fitness.noise)
    if not path.is_file():
        raise ConfigError(f"fitness.noise={path}: no such file; expected the noise.json that `asiarch noise` wrote")
    record = from_json(NoiseRecord, read_json(path), source=str(path))
    if lines := differences(dict(record.conditions), conditions(config)):
        raise ConfigError(
            f"fitness.noise={path}: its spread belongs to other conditions than this run's:\n  "
            + "\n  ".join(lines)
            + "\nmeasure the noise at this run's with `asiarch noise`, or leave fitness.noise empty"
        )
    trials = {f"{config.scale.name}-s{seed}" for seed in config.baselines.seeds}
    if shared := trials & {evaluation.trial for evaluation in record.evaluations}:
        raise ConfigError(
            f"fitness.noise={path}: {sorted(shared)} would count twice, as the run trains these seeds itself; "
            "other baselines.seeds were expected"
        )
    write_json(layout.noise, to_json(record))


def known_spread(layout: RunLayout, config: Config) -> SeedSpread | None:
    """The spread that the run was given, if any."""
    if not config.fitness.noise:
        return None
    return spread_of(from_json(NoiseRecord, read_json(layout.noise), source=str(layout.noise)).stats)


def conditions(config: Config) -> dict[str, Any]:
    """The settings that a spread belongs to."""
    found: Mapping[str, Any] = to_dict(config)
    return {
        group: {name: value for name, value in found[group].items() if name not in others}
        for group, others in NO_CONDITIONS.items()
    }
