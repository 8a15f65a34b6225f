"""A run that measures noise, and runs that use what it measured."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from asiarch_hpc.config import Config, PromotionConfig, StageConfig, at_stage, load_config
from asiarch_hpc.controller import progress, run, view
from asiarch_hpc.controller.leaderboard import leaderboard
from asiarch_hpc.controller.loop import Controller
from asiarch_hpc.controller.noise import NoiseRecord, conditions, noise_config, noise_files, take_noise, write_noise
from asiarch_hpc.controller.noise_table import table
from asiarch_hpc.controller.state import RunState
from asiarch_hpc.errors import ConfigError, RecordError
from asiarch_hpc.records import to_json
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


def staged_config(**final: float) -> Config:
    """A run with two stages; designs go on to `final` by what is known of `verify`."""
    config = config_of()
    for name, rule in (
        ("verify", PromotionConfig(beat_baseline=False)),
        ("final", PromotionConfig(by="loss", benchmark_slack=1.0, **final)),  # type: ignore[arg-type]
    ):
        config.stages[name] = StageConfig(promote=rule, baselines=["mamba2"])
        config.stages[name].scale.name = name
    config.stages["verify"].scale.steps = 500
    config.stages["final"].scale.steps = 900
    return config


def measured_at(stage: str, root: Path, config: Config, **stats: float) -> str:
    """The file of a noise run at a scale of the configuration, with other statistics than it found where given."""
    single = noise_config(config, design="delta_net", seeds=5, scale=stage)
    controller = drive(root, single)
    record = write_noise(controller.layout, controller.state, single, code="test")
    write_json(controller.layout.noise, to_json(replace(record, stats=replace(record.stats, **stats))))  # type: ignore[arg-type]
    return str(controller.layout.noise)


def given(root: Path, config: Config, *files: str) -> Controller:
    """A run that was given these noise records, driven to its end."""
    config = replace(config, fitness=replace(config.fitness, noise=list(files)))
    layout = RunLayout(root)
    layout.root.mkdir()
    take_noise(layout, config)
    return drive(layout.root, config)


def test_each_scale_pools_the_noise_of_its_own_conditions(tmp_path: Path) -> None:
    config = staged_config()
    verify = measured_at("verify", tmp_path / "noise-verify", config)
    explore = measured_at("explore", tmp_path / "noise-explore", config)
    alone = drive(tmp_path / "alone", config).state
    controller = given(tmp_path / "run", config, verify, explore)
    state = controller.state

    def freedom(found: RunState) -> list[int]:
        return [seed_spread(found.stats).freedom, seed_spread(found.stages["verify"].stats).freedom]

    assert freedom(alone) == [4, 4]
    assert freedom(state) == [8, 8]
    own, known = seed_spread(alone.stages["verify"].stats), state.stages["verify"].stats[0].known
    assert known is not None
    pooled = seed_spread(state.stages["verify"].stats)
    assert pooled.loss**2 == pytest.approx((4 * own.loss**2 + 4 * known.loss**2) / 8)
    assert known != state.stats[0].known
    Path(verify).unlink()  # the run has its own copies
    before = run.fingerprint(state)
    controller.replace_state(run.rebuild(controller.layout, controller.config))
    assert run.fingerprint(controller.state) == before
    assert freedom(controller.state) == [8, 8]


def test_promotion_and_leaderboard_of_a_stage_use_its_noise(tmp_path: Path) -> None:
    config = staged_config(min_noise_multiples=0.01)
    narrow = measured_at("verify", tmp_path / "narrow", config, loss_sd=1e-4, benchmark_sd=0.01)
    wide = measured_at("verify", tmp_path / "wide", config, loss_sd=100.0, benchmark_sd=0.01)
    few, many = given(tmp_path / "few", config, wide), given(tmp_path / "many", config, narrow)
    assert few.state.stages["verify"].promoted == many.state.stages["verify"].promoted  # by exploration's noise
    assert many.state.stages["final"].promoted
    assert not few.state.stages["final"].promoted
    reasons = [decision.reason for decision in few.state.stages["final"].decisions]
    assert any("is not below delta_net's by 0.01 standard deviations" in reason for reason in reasons)

    def board(controller: Controller) -> str:
        stats = controller.state.stages["verify"].stats
        rows = progress.stage_rows("verify", controller.state)
        printed = io.StringIO()
        view.print_to(printed, leaderboard(rows, reference=stats[0], baselines=stats, width=120))
        return printed.getvalue()

    assert "±8" in board(few)  # of 1 against 3 trainings: 100 · sqrt(4/8) · sqrt(4/3)
    assert "±8" not in board(many)


def test_noise_that_fits_no_scale_or_one_twice_is_refused(tmp_path: Path) -> None:
    config = staged_config()
    verify = measured_at("verify", tmp_path / "noise", config)
    layout = RunLayout(tmp_path / "run")

    def take(config: Config, *files: str) -> None:
        take_noise(layout, replace(config, fitness=replace(config.fitness, noise=list(files))))

    other = staged_config()
    other.stages["verify"].scale.steps, other.stages["verify"].scale.depth = 501, 3
    other.stages["final"].scale.steps = 501
    with pytest.raises(ConfigError) as refused:
        take(other, verify)
    message = str(refused.value)
    assert "(explore, verify, final); from the nearest, explore, it differs in\n  scale.steps: 500 -> 300" in message
    with pytest.raises(ConfigError, match=r"both of scale verify; one for each scale"):
        take(config, verify, verify)
    same = staged_config()
    same.stages["verify"].baseline_seeds = [0, 1, 1002]
    with pytest.raises(ConfigError, match=r"verify-s1002'\] would count twice.* at verify; other baseline_seeds"):
        take(same, verify)
    assert not layout.given_noise.exists()


@pytest.mark.parametrize("value", ["3", "{verify: a.json}", "[a.json, 3]"])
def test_noise_is_named_by_files(value: str) -> None:
    with pytest.raises(ConfigError, match="a file, or a list of files, was expected"):
        load_config(overrides=[f"fitness.noise={value}"])
    assert noise_files(load_config(overrides=["fitness.noise=a.json"])) == ["a.json"]
    assert noise_files(load_config(overrides=["fitness.noise=[a.json, b.json]"])) == ["a.json", "b.json"]
    assert noise_files(load_config()) == []


def test_noise_of_a_stage_of_a_shipped_configuration_has_its_conditions() -> None:
    config = load_config("paper")
    for name in config.stages:
        single = noise_config(config, design="delta_net", seeds=3, scale=name)
        assert conditions(single) == conditions(at_stage(config, name)) != conditions(config)


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
