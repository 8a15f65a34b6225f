"""The loop where language models take part: who proposes, what is repaired, when agents wait, what budgets end."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from asiarch_hpc.config import Config, ServerConfig
from asiarch_hpc.controller import run, works
from asiarch_hpc.controller.scheduler import JobRequest
from asiarch_hpc.controller.side_by_side import proposer_rows
from asiarch_hpc.controller.state import RunState, Tally
from asiarch_hpc.records import Json
from asiarch_hpc.store.experiments import scan
from asiarch_hpc.store.files import write_json
from asiarch_hpc.store.journal import read_events
from asiarch_hpc.store.layout import RunLayout
from tests.controller.simulated import Clock, SimulatedJobs, SimulatedScheduler, config_of, controller_of, drive


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_a_run_with_a_team_reaches_its_end(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", config_of(team=True, designs=12))
    assert controller.done() == "complete"
    found = [e for e in scan(controller.layout).experiments if e.record.role == "candidate" and e.score]
    assert all(e.score is not None and e.score.judgement.source == "llm" for e in found)
    rows = {row.name: row for row in proposer_rows(controller.state)}
    assert set(rows) == {"llm", "recombine"}
    assert sum(len(row.fitness) for row in rows.values()) == len(found) == 12
    assert rows["llm"].proposals >= rows["llm"].admitted >= len(rows["llm"].fitness)


def test_rebuilding_a_run_with_a_team_gives_the_same_state(tmp_path: Path) -> None:
    config = config_of(team=True, designs=8)
    controller = drive(tmp_path / "run", config)
    before = run.fingerprint(controller.state)
    controller.replace_state(run.rebuild(controller.layout, config))
    assert run.fingerprint(controller.state) == before


def test_a_failed_training_is_repaired_a_bounded_number_of_times(tmp_path: Path) -> None:
    config = config_of(team=True, designs=3, attempts=6)
    config.proposer = "llm"
    config.agents.debug_attempts = 2
    controller = drive(tmp_path / "run", config, fail=1.0, reject=0.0)
    operators: dict[int, list[str]] = {}
    for stored in sorted(
        scan(controller.layout).experiments, key=lambda e: (e.record.slot or 0, e.record.attempt or 0)
    ):
        if stored.record.slot is not None:
            operators.setdefault(stored.record.slot, []).append(stored.record.operator)
    assert all(found == ["llm", "debug", "debug", "llm", "debug", "debug"] for found in operators.values()), operators
    kinds = Counter(
        w["kind"] for e in read_events(controller.layout.journal) if e["event"] == "intent" for w in e["works"]
    )
    assert kinds["debug"] == 4 * len(operators)


def test_without_language_models_nothing_is_repaired(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", config_of(designs=2), fail=1.0, reject=0.0)
    assert {e.record.operator for e in scan(controller.layout).experiments} == {"mutation"}


class NoJudge(SimulatedJobs):
    """Agents of which the judge never gives a grade."""

    def assess(self, arguments: Json) -> Json:
        payload = super().assess(arguments)
        payload["assessment"]["judge"] = None
        return payload


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_missing_grade_is_a_failure_and_never_a_middling_one(tmp_path: Path, attempts: int) -> None:
    layout, config = RunLayout(tmp_path / "run"), config_of(team=True, designs=2, attempts=attempts)
    scheduler = SimulatedScheduler(NoJudge(layout, reject=0.0, fail=0.0))
    controller = controller_of(layout, config, scheduler, Clock())
    while controller.done() is None:
        controller.tick()
        scheduler.work()
    scores = [e.score for e in scan(layout).experiments if e.record.role == "candidate"]
    assert scores == [None] * len(scores)
    assert controller.state.causes["refused"] == len(scores)
    run.rebuild(layout, config)  # the tree alone tells that the search went on


class Orphans(SimulatedJobs):
    """Jobs of which each wrote a design once before, and died before it could say so."""

    def propose(self, arguments: Json, entry: str = "jobs.propose:candidate") -> Json:
        if arguments.get("slot") is not None:
            super().propose({**arguments, "design": f"orphan-{arguments['slot']}-{arguments['attempt']}"}, entry)
        return super().propose(arguments, entry)


def test_a_design_that_a_dead_job_left_does_not_take_the_place_of_the_scored_one(tmp_path: Path) -> None:
    layout, config = RunLayout(tmp_path / "run"), config_of(team=True, designs=6)
    scheduler = SimulatedScheduler(Orphans(layout, reject=0.0, fail=0.0))
    controller = controller_of(layout, config, scheduler, Clock())
    while controller.done() is None:
        controller.tick()
        scheduler.work()
    before = run.fingerprint(controller.state)
    controller.replace_state(run.rebuild(layout, config))
    assert run.fingerprint(controller.state) == before


class Away(SimulatedJobs):
    """Agents that find no server the first `times` times."""

    def __init__(self, layout: RunLayout, times: int) -> None:
        super().__init__(layout, reject=0.0, fail=0.0)
        self.times = times

    def run(self, request: JobRequest) -> None:
        if request.kind != "assess" or self.times <= 0:
            super().run(request)
            return
        self.times -= 1
        work, submission = request.arguments["work"], request.arguments["submission"]
        folder = self.layout.attempts(work)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{submission:03d}.000").touch()
        message = {"status": "away", "job": request.name, "work": work, "submission": submission, "restart": 0}
        message |= {
            "cause": "NoServerError",
            "message": "none",
            "stage": "job",
            "traceback": "",
            "seconds": 1.0,
            "tokens": 3,
        }
        write_json(self.layout.message(request.name, 0), message)


def test_an_outage_of_all_servers_costs_no_design(tmp_path: Path) -> None:
    layout, config = RunLayout(tmp_path / "run"), config_of(team=True, designs=4)
    scheduler = SimulatedScheduler(Away(layout, times=40))
    controller = controller_of(layout, config, scheduler, Clock())
    while controller.done() is None:
        controller.tick()
        scheduler.work()
    assert len([s for s in controller.state.scores.values() if s.slot is not None]) == 4
    assert not controller.state.losses
    assert controller.state.tokens >= 40 * 3


def test_a_spent_budget_of_gpu_seconds_ends_the_run(tmp_path: Path) -> None:
    config = config_of(team=True, designs=40)
    config.executor.train.gpus = 2
    config.agents.gpu_seconds = 30.0
    controller = drive(tmp_path / "run", config)
    assert "agents.gpu_seconds=30 are used" in str(controller.done())
    assert controller.state.gpu_seconds >= 30.0


def test_a_spent_budget_ends_the_run(tmp_path: Path) -> None:
    config = config_of(team=True, designs=40)
    config.agents.tokens = 20
    controller = drive(tmp_path / "run", config)
    assert "agents.tokens=20 are used" in str(controller.done())
    assert 0 < len(controller.state.scores) < 40


def test_shares_decide_who_proposes_and_are_the_same_everywhere() -> None:
    config = config_of(team=True)
    drawn = Counter(works.proposer_of(slot, 0, config) for slot in range(2000))
    assert 0.65 < drawn["llm"] / 2000 < 0.75
    assert [works.proposer_of(s, 1, config) for s in range(9)] == [works.proposer_of(s, 1, config) for s in range(9)]


@pytest.mark.parametrize(
    ("proposal_seconds", "train_seconds", "expected"), [(10.0, 100.0, 1), (100.0, 100.0, 4), (250.0, 100.0, 10)]
)
def test_measured_rates_say_how_many_designers_keep_the_trainers_busy(
    proposal_seconds: float, train_seconds: float, expected: int
) -> None:
    config = Config()
    state = RunState(config.search)
    state.tallies["llm"] = Tally(proposals=10, admitted=5, seconds=5 * proposal_seconds)
    state.train_seconds = [train_seconds]
    assert works.designs_wanted(state, config, 4) == expected


def test_the_end_of_a_run_asks_its_servers_to_end(tmp_path: Path) -> None:
    config = config_of(team=True)
    config.agents.endpoints = []
    config.agents.servers = [ServerConfig(name="main", model="m", count=2, drain_s=0.0)]
    layout = RunLayout(tmp_path / "run")
    scheduler = SimulatedScheduler(SimulatedJobs(layout))
    controller = controller_of(layout, config, scheduler, Clock())
    controller.tick()
    servers = [busy.key for busy in controller.state.busy.values() if busy.kind == "serve"]
    assert servers == ["serve-main-0-000", "serve-main-1-000"]
    assert [job.resources.gpus for job in scheduler.pending if job.kind == "serve"] == [1, 1]
    controller.finish("complete")
    assert {path.name for path in layout.services.iterdir()} == {"main-0-000.drain", "main-1-000.drain"}
