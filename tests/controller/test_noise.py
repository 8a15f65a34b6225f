"""A run that measures noise, and runs that use what it measured."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from asiarch_hpc.config import Config, StageConfig, load_config
from asiarch_hpc.controller import run
from asiarch_hpc.controller.loop import Controller
from asiarch_hpc.controller.noise import NoiseRecord, noise_config, take_noise, write_noise
from asiarch_hpc.controller.noise_table import table
from asiarch_hpc.errors import ConfigError, RecordError
from asiarch_hpc.search.baselines import seed_spread
from asiarch_hpc.store.files import write_json
from asiarch_hpc.store.layout import RunLayout
from tests.conftest import CALM, asiarch
from tests.controller.simulated import config_of, drive


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def measured(root: Path, config: Config, seeds: int = 5) -> tuple[Controller, NoiseRecord]:
    single = noise_config(config, design="delta_net", seeds=seeds, scale="explore")
    controller = drive(root, single)
    return controller, write_noise(controller.layout, controller.state, single, code="test")


def test_a_noise_run_trains_one_design_with_seeds_of_its_own(tmp_path: Path) -> None:
    controller, record = measured(tmp_path / "noise", config_of(team=True))
    assert controller.done() == "complete"
    assert [e.name for e in controller.state.experiments.values()] == ["delta_net"]
    assert [e.trial for e in record.evaluations] == [f"explore-s{seed}" for seed in range(1000, 1005)]
    assert record.stats.seeds == 5
    text = "\n".join(table(record))
    assert f"{record.stats.loss_sd:.4f}" in text
    assert "1 seed against 3" in text


def test_a_run_pools_the_noise_that_it_is_given(tmp_path: Path) -> None:
    config = config_of()
    _, record = measured(tmp_path / "noise", config)
    alone = drive(tmp_path / "alone", config).state
    config = replace(config, fitness=replace(config.fitness, noise=str(tmp_path / "noise" / "noise.json")))
    layout = RunLayout(tmp_path / "run")
    layout.root.mkdir()
    take_noise(layout, config)
    controller = drive(layout.root, config)
    own, pooled = seed_spread(alone.stats), seed_spread(controller.state.stats)
    assert (own.freedom, pooled.freedom) == (4, 8)
    assert pooled.loss**2 == pytest.approx((4 * own.loss**2 + 4 * record.stats.loss_sd**2) / 8)
    assert [s.loss_mean for s in controller.state.stats] == [s.loss_mean for s in alone.stats]
    changed = [a.fitness_sd != b.fitness_sd for a, b in zip(*map(scores, (alone, controller.state)), strict=True)]
    assert all(changed)

    (tmp_path / "noise" / "noise.json").unlink()  # the run has its own copy
    before = run.fingerprint(controller.state)
    controller.replace_state(run.rebuild(layout, config))
    assert run.fingerprint(controller.state) == before
    assert seed_spread(controller.state.stats) == pooled


def scores(state: object) -> list[object]:
    return [score for _, score in sorted(state.scores.items())]  # type: ignore[attr-defined]


def test_noise_of_other_conditions_or_of_the_same_seeds_is_refused(tmp_path: Path) -> None:
    config = config_of()
    measured(tmp_path / "noise", config)
    config.fitness.noise = str(tmp_path / "noise" / "noise.json")
    layout = RunLayout(tmp_path / "run")
    longer = replace(config, scale=replace(config.scale, steps=600))
    with pytest.raises(ConfigError, match=r"scale.steps: 300 -> 600"):
        take_noise(layout, longer)
    for group, other in (
        ("data", {"paths": ["elsewhere"]}),
        ("data", {"max_tokens": 7}),
        ("scale", {"weight_decay": 0.0}),
        ("evaluation", {"limit": 50}),
        ("evaluation", {"metrics": {"recall": "acc_norm"}}),
    ):
        changed = replace(config, **{group: replace(getattr(config, group), **other)})
        with pytest.raises(ConfigError, match=f"{group}.{next(iter(other))}"):
            take_noise(layout, changed)
    same = replace(config, baselines=replace(config.baselines, seeds=[0, 1, 1000]))
    with pytest.raises(ConfigError, match=r"explore-s1000.* would count twice"):
        take_noise(layout, same)
    with pytest.raises(ConfigError, match="no such file"):
        take_noise(layout, replace(config, fitness=replace(config.fitness, noise="nowhere.json")))
    write_json(tmp_path / "other.json", {"run": "x"})
    elsewhere = replace(config, scale=replace(config.scale, threads=8, device="cpu"))
    take_noise(RunLayout(tmp_path / "elsewhere"), elsewhere)  # how fast it goes is no condition
    with pytest.raises(RecordError, match="missing"):
        take_noise(layout, replace(config, fitness=replace(config.fitness, noise=str(tmp_path / "other.json"))))


def test_the_scale_may_be_a_stage(tmp_path: Path) -> None:
    config = config_of()
    stage = StageConfig()
    stage.scale.name, stage.scale.dim = "verify", 128
    config.stages = {"verify": stage}
    single = noise_config(config, design="gated_delta_net", seeds=3, scale="verify")
    assert (single.scale.name, single.scale.dim, single.baselines.reference) == ("verify", 128, "gated_delta_net")
    assert single.stages == {}
    with pytest.raises(ConfigError, match="final"):
        noise_config(config, design="delta_net", seeds=3, scale="final")
    with pytest.raises(ConfigError, match="at least three seeds"):
        noise_config(config, design="delta_net", seeds=2, scale="explore")


def test_the_command_writes_the_spread_and_shows_it(tmp_path: Path) -> None:
    config = noise_config(load_config("smoke", CALM), design="delta_net", seeds=3, scale="smoke")
    # The command resumes a run of which all trainings are done.
    drive(tmp_path / "noise-smoke-smoke-delta_net", config).close()
    done = asiarch("noise", "--config", "smoke", "--seeds", "3", "--results", str(tmp_path), *CALM)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "noise-smoke-smoke-delta_net" / "noise.json").read_text())
    assert found["stats"]["seeds"] == 3
    assert found["stats"]["loss_sd"] > 0
    assert f"{found['stats']['loss_sd']:.4f}" in done.stdout
    assert "smallest difference beyond noise" in done.stdout
