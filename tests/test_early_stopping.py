"""Trainings that are behind: what they are held against, how they end, and what the search makes of it."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from asiarch_hpc.config import EarlyStoppingConfig
from asiarch_hpc.controller import progress, run
from asiarch_hpc.records import Generation, Json, from_json
from asiarch_hpc.store.curves import read_curves, write_curves
from asiarch_hpc.store.experiments import scan
from asiarch_hpc.store.files import read_json, write_json
from asiarch_hpc.store.layout import RunLayout
from jobs import train
from jobs.entry import Attempt
from jobs.peers import peers
from jobs.workspace import Workspace
from tests.conftest import pools
from tests.controller.simulated import Clock, SimulatedJobs, SimulatedScheduler, config_of, controller_of

RUNGS = EarlyStoppingConfig(rungs=[0.5], keep=0.5, margin=1.0, window=0.2, curves=2)


class Behind(SimulatedJobs):
    """Of the designs a part is stopped early, and all leave curves."""

    cause = "behind"

    def train(self, arguments: Json) -> Json:
        payload = super().train(arguments)
        curves(self.layout, arguments["experiment"], arguments["trial"], [payload["evaluation"]["loss"]] * 10)
        return payload


def curves(layout: RunLayout, identifier: str, trial: str, losses: Sequence[float]) -> None:
    rows = [dict.fromkeys(train.CURVES, 1.0) | {"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    write_curves(rows, layout.experiment(identifier).trial(trial).curves)


def test_a_design_that_was_behind_is_counted_but_neither_scored_nor_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    layout, config = RunLayout(tmp_path / "run"), config_of(team=True, designs=8, attempts=4)
    config.scale.steps, config.search.early_stopping = 10, RUNGS
    scheduler = SimulatedScheduler(Behind(layout, reject=0.0, fail=0.3))
    controller = controller_of(layout, config, scheduler, Clock())
    while controller.done() is None:
        controller.tick()
        scheduler.work()
    state = controller.state
    stopped = {e.id for e in state.experiments.values() if e.failed_cause == "behind"}
    assert state.causes["behind"] == len(stopped) == len(progress.stopped_early(state)) > 0
    assert not stopped & set(state.scores)
    assert {e.record.operator for e in scan(layout).experiments} <= {"mutation", "llm"}
    assert sum(score.slot is not None for score in state.scores.values()) == 8
    before = run.fingerprint(state)
    controller.replace_state(run.rebuild(layout, config))
    assert run.fingerprint(controller.state) == before

    # A design is held against those that its pool generation knew, at their trial of the same seed.
    space, reference = Workspace(layout, config), state.baselines["delta_net"]
    known = from_json(Generation, read_json(layout.generation(2)), source="pool")
    earlier = [e for e in known.tried if state.experiments[e].slot is not None and e not in stopped]
    assert len(earlier) == 4
    curves(layout, sorted(stopped & set(known.tried))[0], "explore-s0", [9.0] * 5)
    later = next(e.id for e in state.experiments.values() if e.slot == 4)
    record = read_json(layout.experiment(later).record)
    write_json(layout.experiment(later).record, {**record, "generation": 2})
    losses = sorted([*(state.experiments[e].evaluations["explore-s0"].loss for e in earlier), 9.0])
    seeds = [[e.loss for e in state.experiments[b].evaluations.values()] for b in state.baselines.values()]
    beside = peers(space, later, "explore-s0", reference)
    assert beside is not None
    assert beside.window == 2
    assert beside.limits[5] >= max(losses[2], sum(seeds[0]) / 3)
    assert beside.limits[5] == pytest.approx(
        max(losses[2], sum(seeds[0]) / 3) + (state.stats[0].loss_sd ** 2 / 2 + state.stats[1].loss_sd ** 2 / 2) ** 0.5
    )
    config.search.early_stopping = EarlyStoppingConfig()
    off = peers(space, later, "explore-s0", reference)
    assert off is not None
    assert off.limits == {}


@pytest.mark.slow  # for the run that it starts from
def test_a_real_training_that_is_behind_ends_at_the_rung(calm: RunLayout, tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    shutil.copytree(calm.root, layout.root)
    (tmp_path / "corpora").symlink_to(calm.root.parent / "corpora")
    record = read_json(layout.record)
    record["config"]["search"]["early_stopping"] |= {"rungs": [0.5], "window": 0.1, "curves": 1, "margin": 0.0}
    write_json(layout.record, record)
    stored = [e.record for e in scan(layout).experiments if e.score is not None]
    late, early = [e for e in stored if e.role == "candidate" and e.slot is not None][:2]
    generation = pools(layout)["000000.json"]
    reference = generation["baselines"][0]["experiment"]
    for seed in range(3):
        curves(layout, reference, f"smoke-s{seed}", [0.5] * 30)
    curves(layout, early.id, "smoke-s0", [0.5] * 30)
    number = late.generation
    write_json(layout.generation(number), {**generation, "number": number, "tried": [early.id, reference]})
    trial = layout.experiment(late.id).trial("smoke-s0")
    shutil.rmtree(trial.root)

    attempt = Attempt(layout, "train", "work", 0, 0, mmap.mmap(-1, 1))
    attempt.claim()
    with pytest.raises(train.FailedTrialError) as failed:
        train.run(attempt, {"experiment": late.id, "trial": "smoke-s0", "seed": 0, "reference": reference})
    assert (failed.value.stage, failed.value.cause) == ("training", "behind")
    assert read_json(trial.failure)["cause"] == "behind"
    assert list(read_curves(trial.curves)["step"]) == list(range(1, 16))
    assert sorted(path.name for path in trial.root.iterdir()) == ["curves.zarr.zip", "failure.json", "metrics.jsonl"]
