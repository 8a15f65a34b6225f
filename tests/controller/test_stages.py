"""A search over several scales against simulated jobs: who goes on, what is trained there, and when it ends."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.config import Config, PromotionConfig, StageConfig
from asiarch_hpc.controller import progress, run, view
from asiarch_hpc.controller.loop import Controller
from asiarch_hpc.controller.scheduler import JobRequest
from asiarch_hpc.errors import SchedulerError, TrainingError
from asiarch_hpc.store.files import write_json
from asiarch_hpc.store.journal import read_events
from asiarch_hpc.store.layout import RunLayout
from tests.controller.simulated import Clock, SimulatedJobs, SimulatedScheduler, config_of, controller_of, drive
from tests.controller.test_loop import CrashAt, free, pools

ALL = PromotionConfig(beat_baseline=False)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def staged(config: Config | None = None, **rules: PromotionConfig) -> Config:
    """A configuration with a stage for each rule; `verify` has mamba2 as its only further baseline."""
    config = config or config_of()
    for name, rule in rules.items():
        config.stages[name] = StageConfig(promote=rule, baselines=["mamba2"])
        config.stages[name].scale.name = name
    return config


def two_stages() -> Config:
    return staged(verify=PromotionConfig(top=3, beat_baseline=False), final=PromotionConfig(top=1, by="loss"))


def summaries(layout: RunLayout) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted(layout.root.glob("stages/*.json"))}


def at_verify(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [work for work in event["works"] if work["scale"] == "verify"]


def submitted(controller: Controller) -> list[dict[str, Any]]:
    """Works in the order of their submission."""
    events = read_events(controller.layout.journal)
    return [work for event in events if event["event"] == "intent" for work in event["works"]]


def test_the_best_go_on_and_the_run_ends_after_them(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", two_stages())
    state = controller.state
    assert controller.done() == "complete"
    verify, final = state.stages["verify"], state.stages["final"]
    best = sorted((s for s in state.scores.values() if s.slot is not None), key=lambda s: -s.fitness)[:3]
    assert verify.promoted == tuple(score.experiment for score in best)
    assert {len(verify.evaluations[identifier]) for identifier in verify.promoted} <= {1}
    assert [stats.name for stats in verify.stats] == ["delta_net", "mamba2"]
    assert all(stats.seeds == 3 for stats in verify.stats)
    assert len(final.promoted) <= 1
    works = submitted(controller)
    first = next(index for index, work in enumerate(works) if work["scale"] == "verify")
    assert all(work["scale"] for work in works[first:]), "exploration goes on after the promotion"
    files = summaries(controller.layout)
    assert [d["promoted"] for d in files["verify.json"]["decisions"]].count(True) == 3
    assert {d["experiment"] for d in files["verify.json"]["decisions"]} == {
        score.experiment for score in state.scores.values() if score.slot is not None
    }
    events = [event for event in read_events(controller.layout.journal) if event["event"] == "promoted"]
    assert [event["scale"] for event in events] == ["verify", "final"]
    assert all(decision["reason"] for event in events for decision in event["decisions"])


def test_a_stage_waits_for_the_reference_and_trains_mamba2_nowhere_else(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    controller = finish(layout, two_stages(), SimulatedScheduler(SimulatedJobs(layout), limit=50))
    reference = controller.state.baselines["delta_net"]
    promoted = controller.state.stages["verify"].promoted
    trained: set[str] = set()
    for event in read_events(controller.layout.journal):
        if event["event"] == "trained" and event["experiment"] == reference:
            trained.add(event["trial"])
        if event["event"] == "intent" and any(work["experiment"] in promoted for work in at_verify(event)):
            assert {f"verify-s{seed}" for seed in range(3)} <= trained
    mamba2 = controller.state.experiments[controller.state.baselines["mamba2"]]
    assert mamba2.gate.passed
    assert not mamba2.evaluations
    assert mamba2.id not in controller.state.scores


def test_nobody_goes_on_and_nothing_is_trained(tmp_path: Path) -> None:
    nobody = PromotionConfig(min_noise_multiples=1e9)
    controller = drive(tmp_path / "run", staged(verify=nobody, final=ALL))
    assert controller.done() == "complete"
    assert not any(work["scale"] for work in submitted(controller))
    assert all("not below" in d.reason or "above" in d.reason for d in controller.state.stages["verify"].decisions)
    assert controller.state.stages["final"].decisions == ()


class Failing(SimulatedJobs):
    """Trainings at `verify` of one experiment fail."""

    victim: Callable[[SimulatedJobs, str], bool]

    def run(self, request: JobRequest) -> None:
        arguments = request.arguments["arguments"]
        if arguments.get("scale") != "verify" or not self.victim(self, arguments["experiment"]):
            return super().run(request)
        work, submission = request.arguments["work"], request.arguments["submission"]
        claim = self.layout.attempts(work) / f"{submission:03d}.000"
        claim.parent.mkdir(parents=True, exist_ok=True)
        claim.touch()
        failure = {"stage": "training", "cause": "diverged", "message": "loss 99"}
        write_json(self.layout.experiment(arguments["experiment"]).trial(arguments["trial"]).failure, failure)
        message = {"job": request.name, "work": work, "submission": submission, "restart": 0, "seconds": 1.0}
        write_json(self.layout.message(request.name, 0), {**message, "status": "failed", **failure})


def drive_with(layout: RunLayout, config: Config, victim: Callable[[SimulatedJobs, str], bool]) -> Controller:
    jobs = Failing(layout)
    jobs.victim = victim  # type: ignore[method-assign, assignment]
    return finish(layout, config, SimulatedScheduler(jobs))


def finish(layout: RunLayout, config: Config, scheduler: SimulatedScheduler) -> Controller:
    controller = controller_of(layout, config, scheduler, Clock())
    while controller.done() is None:
        controller.tick()
        scheduler.work()
    return controller


def test_a_failure_at_a_stage_keeps_the_score_of_exploration(tmp_path: Path) -> None:
    whole = drive(tmp_path / "whole", two_stages())
    victim = whole.state.stages["verify"].promoted[0]
    controller = drive_with(RunLayout(tmp_path / "run"), two_stages(), lambda jobs, identifier: identifier == victim)
    assert pools(controller.layout) == pools(whole.layout)
    assert controller.state.stages["verify"].failures == {victim: "diverged: loss 99"}
    assert victim in controller.state.scores
    assert victim not in {d.experiment for d in controller.state.stages["final"].decisions}
    assert summaries(controller.layout)["verify.json"]["failures"] == {victim: "diverged: loss 99"}
    before = run.fingerprint(controller.state)
    controller.replace_state(run.rebuild(controller.layout, controller.config))
    assert run.fingerprint(controller.state) == before


def test_a_baseline_that_fails_is_left_out_and_the_reference_stops_the_run(tmp_path: Path) -> None:
    def named(name: str) -> Callable[[SimulatedJobs, str], bool]:
        return lambda jobs, identifier: f'"{name}"' in jobs.layout.experiment(identifier).record.read_text()

    controller = drive_with(RunLayout(tmp_path / "a"), two_stages(), named("mamba2"))
    assert controller.done() == "complete"
    assert [stats.name for stats in controller.state.stages["verify"].stats] == ["delta_net"]
    with pytest.raises(TrainingError, match="delta_net could not be trained at verify: diverged"):
        drive_with(RunLayout(tmp_path / "b"), two_stages(), named("delta_net"))


def test_rebuilding_from_the_tree_gives_the_same_stages(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", two_stages())
    before, files = run.fingerprint(controller.state), summaries(controller.layout)
    promotions = [d for stage in controller.state.stages.values() for d in stage.decisions]
    assert any(d.promoted for d in promotions)
    controller.layout.journal.unlink()
    for path in controller.layout.root.glob("stages/*.json"):
        path.write_text("{}")
    controller.replace_state(run.rebuild(controller.layout, controller.config))
    assert run.fingerprint(controller.state) == before
    assert summaries(controller.layout) == files
    assert controller.done() == "complete"


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_evaluation_of_a_stage_costs_only_its_own_work(tmp_path: Path, content: str) -> None:
    config = two_stages()
    controller = drive(tmp_path / "run", config)
    before, layout = run.fingerprint(controller.state), controller.layout
    victim = controller.state.stages["verify"].promoted[1]
    layout.experiment(victim).trial("verify-s0").evaluation.write_text(content)
    free(layout)
    with run.open_controller(layout, config) as resumed:
        assert any("moved aside" in line for line in resumed.state.recent)
    scheduler = SimulatedScheduler(SimulatedJobs(layout))
    again = finish(layout, config, scheduler)
    assert run.fingerprint(again.state) == before
    assert len(scheduler.submitted) == 1


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_in_which_jobs_end_changes_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    config = two_stages()
    expected = drive(tmp_path_factory.mktemp("a") / "run", config)
    other = drive(tmp_path_factory.mktemp("b") / "run", config, order=random.Random(seed))
    assert run.fingerprint(other.state) == run.fingerprint(expected.state)
    assert summaries(other.layout) == summaries(expected.layout)
    assert pools(other.layout) == pools(expected.layout)


def test_a_crash_in_a_stage_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = staged(config_of(designs=1, batch=1, cold_start=1), verify=ALL)
    expected = drive(tmp_path / "whole", config)
    crash = CrashAt(monkeypatch)
    operation = 0
    while True:
        operation += 3
        layout = RunLayout(tmp_path / f"crash-{operation}")
        scheduler = SimulatedScheduler(SimulatedJobs(layout))
        clock, crashed = Clock(), False
        crash.left = -1
        controller: Controller | None = controller_of(layout, config, scheduler, clock)
        while controller is None or controller.done() is None:
            try:
                if controller is None:
                    controller = controller_of(layout, config, scheduler, clock)
                if "verify" in controller.state.stages or controller.state.scores:
                    crash.left = operation if not crashed and crash.left < 0 else crash.left
                controller.tick()
                left, crash.left = crash.left, -1
                scheduler.work()
                crash.left = left
            except BaseException as error:
                if type(error).__name__ != "Crash":
                    raise
                crashed, controller = True, None
                crash.left = -1
                free(layout)
        assert run.fingerprint(controller.state) == run.fingerprint(expected.state), operation
        assert summaries(layout) == summaries(expected.layout), operation
        assert len(set(scheduler.submitted)) == len(scheduler.submitted)
        if not crashed:
            break
    assert operation > 20


def test_the_view_tells_of_stages(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", two_stages())
    shot = progress.snapshot("run", controller.state, controller.config, now=2000.0)
    text = "\n".join(view.status_lines(shot))
    assert "stage verify: 3 of 6 designs promoted, 3 scored; lowest loss design-" in text
    assert "against delta_net" in text
    rows = progress.stage_rows("verify", controller.state)
    assert sorted(row.name for row in rows if row.role == "baseline") == ["delta_net", "mamba2"]


def test_the_view_counts_the_trainings_that_a_stage_waits_for(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    config = staged(config_of(designs=1, batch=1, cold_start=1), verify=ALL)
    scheduler = SimulatedScheduler(SimulatedJobs(layout))
    controller = controller_of(layout, config, scheduler, Clock())
    phases, told = set(), set()
    while controller.done() is None:
        controller.tick()
        shot = progress.snapshot("run", controller.state, config, now=2000.0)
        phases.add(shot.phase)
        told |= set(shot.stages)
        scheduler.work()
    assert "training the baselines, 0 of 6 trainings done" in phases
    counts = sorted(int(line.split(" of 7 trainings")[0].split()[-1]) for line in told if "of 7 trainings done" in line)
    assert counts, told
    assert counts[0] == 0
    assert counts[-1] < 7
    controller.close()


def test_a_stage_asks_for_its_own_resources(tmp_path: Path) -> None:
    config = staged(verify=ALL)
    config.stages["verify"].train.gpus = 4
    config.stages["verify"].train.nodes = 2
    config.agents.gpu_seconds = 1e9
    layout = RunLayout(tmp_path / "run")
    scheduler = SimulatedScheduler(SimulatedJobs(layout))
    controller = controller_of(layout, config, scheduler, Clock())
    asked: dict[str | None, set[int]] = {}
    while controller.done() is None:
        controller.tick()
        for job in scheduler.pending:
            if job.kind == "train":
                asked.setdefault(job.arguments["arguments"].get("scale"), set()).add(job.resources.gpus)
        scheduler.work()
    assert asked == {None: {0}, "verify": {4}}
    trained = sum(len(trials) for trials in controller.state.stages["verify"].evaluations.values())
    assert controller.state.gpu_seconds == trained * 8


def test_a_gate_on_a_gpu_costs_gpu_seconds_too(tmp_path: Path) -> None:
    config = config_of()
    config.executor.propose.gpus = 1
    state = drive(tmp_path / "run", config).state
    assert state.gpu_seconds == sum(key.startswith("propose-") for key in state.outcomes) > 0


def test_gpu_seconds_that_are_used_up_end_the_run_before_a_stage(tmp_path: Path) -> None:
    config = config_of()
    config.executor.train.gpus = 1
    config.agents.gpu_seconds = 1e9
    exploration = drive(tmp_path / "whole", config).state.gpu_seconds
    config = staged(config, verify=ALL)
    config.agents.gpu_seconds = exploration
    controller = drive(tmp_path / "run", config)
    assert "agents.gpu_seconds" in str(controller.done())
    assert controller.state.stages["verify"].promoted
    assert not any(work["scale"] for work in submitted(controller))


def test_a_run_whose_stage_is_refused_by_the_scheduler_is_not_over(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")

    class Refusing(SimulatedScheduler):
        def submit(self, tag: str, jobs: Sequence[JobRequest]) -> list[str]:
            if any(job.arguments["arguments"].get("scale") for job in jobs):
                raise SchedulerError("no")
            return super().submit(tag, jobs)

    scheduler = Refusing(SimulatedJobs(layout))
    controller = controller_of(layout, staged(verify=ALL), scheduler, Clock())
    while not controller.state.stages or controller.state.busy:
        controller.tick()
        scheduler.work()
    assert controller.done() is None
