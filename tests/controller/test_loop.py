"""The loop against simulated jobs: crash safety, order independence, bounded queries, rebuilding."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.controller import run
from asiarch_hpc.controller.loop import Controller, FatalJobError
from asiarch_hpc.errors import LeaseError, RecordError, SchedulerError, StoreError, TrainingError
from asiarch_hpc.records import Finding, GateReport, Json, to_json
from asiarch_hpc.store import files, journal
from asiarch_hpc.store.experiments import scan
from asiarch_hpc.store.layout import RunLayout
from tests.controller.simulated import Clock, SimulatedJobs, SimulatedScheduler, config_of, controller_of, drive


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls a plug, and thousands of syncs take minutes on a busy disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Crash(BaseException):
    """Stands for kill -9: nothing in the code may catch it."""


class CrashAt:
    """Makes the n-th file-system change of the process die, before or after it happened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self.after = False
        for module, name in ((files.os, "replace"), (files.os, "link"), (files.os, "rename"), (journal.os, "write")):
            monkeypatch.setattr(module, name, self._wrap(getattr(os, name)))
        monkeypatch.setattr(Path, "unlink", self._wrap(Path.unlink))

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Crash
            result = function(*args, **kwargs)
            if self.left == 0:
                raise Crash
            return result

        return wrapped


def pools(layout: RunLayout) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted(layout.pool.glob("*.json"))}


def free(layout: RunLayout) -> None:
    """The lease of a controller that 'died' in this very process looks alive: release it by hand."""
    for epoch in layout.leases():
        content = json.loads(layout.lease(epoch).read_text()) | {"released": True}
        layout.lease(epoch).write_text(json.dumps(content))


def test_a_run_reaches_its_end(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", config_of())
    assert controller.done() == "complete"
    assert sum(s.status == "scored" for s in controller.state.slots.values()) == 6
    assert len(pools(controller.layout)) >= 4
    assert not list(controller.layout.inbox.iterdir())
    assert all(path.is_file() for path in (controller.layout.jobs / "attempts").iterdir())


@pytest.mark.parametrize("team", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_between_any_two_file_operations_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool, team: bool
) -> None:
    config = config_of(team=team, designs=2, batch=1, cold_start=1)
    expected = drive(tmp_path / "whole", config)
    crash = CrashAt(monkeypatch)
    crash.after = after
    operation = 0
    while True:
        operation += 1
        layout = RunLayout(tmp_path / f"crash-{operation}")
        scheduler = SimulatedScheduler(SimulatedJobs(layout))
        crashed, clock = False, Clock()
        crash.left = operation
        controller: Controller | None = None
        while controller is None or controller.done() is None:
            try:
                if controller is None:
                    controller = controller_of(layout, config, scheduler, clock)
                controller.tick()
                left, crash.left = crash.left, -1  # the jobs' own writes are not the controller's
                scheduler.work()
                crash.left = left
            except Crash:
                crashed, controller = True, None
                crash.left = -1
                free(layout)
        assert run.fingerprint(controller.state) == run.fingerprint(expected.state), operation
        assert pools(layout) == pools(expected.layout), operation
        assert len(scan(layout).experiments) == len(scan(expected.layout).experiments)
        trained = [name for name in scheduler.submitted if "-train-" in name]
        assert len(set(scheduler.submitted)) == len(scheduler.submitted)
        assert len(trained) <= sum(len(e.evaluations) + len(e.failures) for e in controller.state.experiments.values())
        if not crashed:
            break
    assert operation > 60


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_in_which_jobs_end_changes_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    config = config_of(designs=5)
    expected = drive(tmp_path_factory.mktemp("a") / "run", config)
    other = drive(tmp_path_factory.mktemp("b") / "run", config, order=random.Random(seed))
    assert pools(expected.layout) == pools(other.layout)


def test_rebuilding_from_the_tree_gives_the_same_state(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", config_of())
    before, files_before = run.fingerprint(controller.state), pools(controller.layout)
    controller.layout.journal.unlink()
    controller.replace_state(run.rebuild(controller.layout, controller.config))
    assert run.fingerprint(controller.state) == before
    assert pools(controller.layout) == files_before
    assert controller.done() == "complete"


def test_a_damaged_journal_is_moved_aside_and_the_run_goes_on(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", config_of())
    before = run.fingerprint(controller.state)
    controller.close()
    lines = controller.layout.journal.read_bytes().splitlines(keepends=True)
    controller.layout.journal.write_bytes(b"".join([*lines[:5], b'{"event": "tra\n', *lines[6:]]))
    with run.open_controller(controller.layout, controller.config) as again:
        again.tick()
        assert run.fingerprint(again.state) == before
        assert any("journal damaged" in line for line in again.state.recent)
    assert controller.layout.journal.with_name("journal.jsonl.damaged-1").exists()


def test_an_edited_design_is_moved_aside_and_its_slot_done_again(tmp_path: Path) -> None:
    config = config_of()
    controller = drive(tmp_path / "run", config)
    before = pools(controller.layout)
    controller.close()
    victim = next(e for e in controller.state.experiments.values() if e.slot == 3 and e.id in controller.state.scores)
    folder = controller.layout.experiment(victim.id)
    folder.architecture.write_text("NAME = 'edited'\n")
    with run.open_controller(controller.layout, config) as resumed:
        assert victim.id not in resumed.state.experiments
        assert any("edited" in line and "moved aside" in line for line in resumed.state.recent)
    scheduler = SimulatedScheduler(SimulatedJobs(controller.layout))
    again = controller_of(controller.layout, config, scheduler, Clock())
    while again.done() is None:
        again.tick()
        scheduler.work()
    assert pools(again.layout) == before


def test_a_torn_message_is_moved_aside_with_a_word(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", config_of())
    (controller.layout.inbox / "x.0.json").write_text('{"job": "x", "wo')
    controller.tick()
    assert any("x.0.json" in line for line in controller.state.recent)
    assert [p.name for p in controller.layout.inbox.iterdir()] == ["x.0.json.damaged-1"]


def test_an_orphan_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    scheduler = SimulatedScheduler(SimulatedJobs(layout))
    controller = controller_of(layout, config_of(), scheduler, Clock())
    controller.tick()
    orphan = scheduler.pending.pop()
    controller.tick()
    controller.tick()  # absent, no claim: never arrived, so it is submitted again
    successor = scheduler.pending[0]
    assert successor.arguments["submission"] == 2
    scheduler.jobs.run(orphan)
    controller.tick()
    assert controller.state.busy
    assert not controller.state.experiments
    scheduler.work()
    controller.tick()
    assert len(controller.state.experiments) == 1


def test_a_job_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")

    class Dying(SimulatedJobs):
        def run(self, request: Any) -> None:
            if request.arguments["arguments"].get("slot") == 0 and request.arguments["arguments"].get("attempt") == 0:
                folder = self.layout.attempts(request.arguments["work"])
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{request.arguments['submission']:03d}.000").touch()
                return
            super().run(request)

    config = config_of()
    scheduler = SimulatedScheduler(Dying(layout))
    controller = controller_of(layout, config, scheduler, Clock())
    while controller.done() is None:
        controller.tick()
        scheduler.work()
    assert controller.state.losses["propose-00000-00"] == config.limits.submissions - 1
    assert controller.state.causes["job lost"] == 1
    assert controller.state.slots[0].status == "scored"


def test_a_baseline_that_the_gate_rejects_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    jobs = SimulatedJobs(layout)
    found = Finding(code="size.unmatched", severity="reject", message="no size matches the baseline's parameters")

    def propose(arguments: Json, entry: str) -> Json:
        rejected = to_json(GateReport(passed=False, findings=(found,)))
        return SimulatedJobs.propose(jobs, arguments, entry) | {"gate": rejected}

    jobs.propose = propose  # type: ignore[method-assign]
    scheduler = SimulatedScheduler(jobs)
    controller = controller_of(layout, config_of(), scheduler, Clock())
    controller.tick()
    scheduler.work()
    controller.tick()
    with pytest.raises(TrainingError, match=r"rejected by the gate \(size.unmatched: no size matches .*gate.json"):
        controller.done()


def test_a_fatal_job_stops_the_run_and_is_tried_again_later(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    scheduler = SimulatedScheduler(SimulatedJobs(layout))
    controller = controller_of(layout, config_of(), scheduler, Clock())
    controller.tick()
    request = scheduler.pending.pop()
    folder = layout.attempts(request.arguments["work"])
    folder.mkdir(parents=True)
    (folder / "001.000").touch()
    message = {"job": request.name, "work": request.arguments["work"], "submission": 1, "restart": 0}
    failure = {"status": "fatal", "cause": "CorpusError", "message": "/no/such/corpus: not found", "traceback": ""}
    files.write_json(layout.message(request.name, 0), message | failure | {"stage": "job", "seconds": 1})
    with pytest.raises(FatalJobError, match="/no/such/corpus"):
        controller.tick()
    controller.tick()
    assert len(scheduler.pending) == 1


def test_an_unreachable_scheduler_leaves_everything_as_it_is(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    scheduler = SimulatedScheduler(SimulatedJobs(layout))
    controller = controller_of(layout, config_of(), scheduler, Clock())
    controller.tick()
    scheduler.query = lambda: (_ for _ in ()).throw(SchedulerError("no answer"))  # type: ignore[method-assign]
    for _ in range(30):
        controller.tick()
    assert len(controller.state.busy) == 1
    assert "no answer" in controller.trouble


def test_at_most_one_query_a_tick_and_a_minute_on_slurm(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    scheduler = SimulatedScheduler(SimulatedJobs(layout), limit=50)
    scheduler.name = "slurm"
    clock = Clock()
    controller = controller_of(layout, config_of(), scheduler, clock)
    began, ticks = clock.now, 0
    while controller.done() is None:
        controller.tick()
        scheduler.work()
        ticks += 1
    assert scheduler.queries <= ticks
    assert scheduler.queries <= (clock.now - began) / controller.config.executor.query_seconds + 1


@pytest.mark.parametrize(
    "message",
    [
        {"work": "/tmp/victim", "job": "j", "submission": 1, "restart": 0, "status": "ok"},
        {"work": "../../experiments", "job": "j", "submission": 1, "restart": 0, "status": "ok"},
        {"work": "", "job": "j", "submission": 1, "restart": 0, "status": "ok"},
        {"work": "propose-delta_net", "job": "j", "submission": "1", "restart": 0, "status": "ok"},
        {"work": "propose-delta_net", "job": "j", "submission": 1, "restart": 0.5, "status": "ok"},
        [],
        None,
    ],
)
def test_a_message_that_no_job_wrote_touches_nothing(tmp_path: Path, message: Any) -> None:
    controller = drive(tmp_path / "run", config_of(designs=2))
    before = sorted(path for path in tmp_path.rglob("*") if path.name[0] != ".")
    files.write_json(controller.layout.inbox / "a.json", message)
    controller.tick()
    after = sorted(path for path in tmp_path.rglob("*") if path.name[0] != ".")
    assert [p for p in after if p not in before] == [controller.layout.inbox / "a.json.damaged-1"]
    assert [p for p in before if p not in after] == []


def test_an_inbox_entry_that_is_no_file_is_moved_aside(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", config_of(designs=2))
    os.mkfifo(controller.layout.inbox / "a.json")
    (controller.layout.inbox / "b.json").mkdir()
    (controller.layout.inbox / "c.json").write_text("[" * 100_000)
    controller.tick()
    names = sorted(path.name for path in controller.layout.inbox.iterdir())
    assert names == ["a.json.damaged-1", "b.json.damaged-1", "c.json.damaged-1"]


@pytest.mark.parametrize("name", ["gate.json", "experiment.json", "trials/explore-s0/evaluation.json"])
@pytest.mark.parametrize("content", ["{", '{"loss": NaN}', "[]"])
def test_a_damaged_record_costs_only_its_own_work(tmp_path: Path, name: str, content: str) -> None:
    config = config_of()
    controller = drive(tmp_path / "run", config)
    before = pools(controller.layout)
    victim = next(e for e in controller.state.experiments.values() if e.slot == 3 and e.id in controller.state.scores)
    (controller.layout.experiment(victim.id).root / name).write_text(content)
    free(controller.layout)
    scheduler = SimulatedScheduler(SimulatedJobs(controller.layout))
    with run.open_controller(controller.layout, config) as resumed:
        assert any("moved aside" in line for line in resumed.state.recent)
    again = controller_of(controller.layout, config, scheduler, Clock())
    for _ in range(100):
        if again.done() is not None:
            break
        again.tick()
        scheduler.work()
    assert again.done() == "complete"
    assert pools(again.layout) == before
    assert 1 <= len(scheduler.submitted) <= 2


def test_an_edited_evaluation_score_or_pool_is_not_believed(tmp_path: Path) -> None:
    config = config_of()
    controller = drive(tmp_path / "run", config)
    layout, before = controller.layout, pools(controller.layout)
    score = next(layout.experiments.glob("*/*/score.json"))
    score.write_text(score.read_text().replace('"fitness": 0.', '"fitness": 0.9'))
    generation = layout.generation(1)
    content = json.loads(generation.read_text())
    generation.write_text(json.dumps(content | {"entries": content["entries"][:1]}))
    free(layout)
    with run.open_controller(layout, config) as resumed:
        resumed.tick()
        assert run.fingerprint(resumed.state) == run.fingerprint(controller.state)
    assert pools(layout) == before
    assert generation.with_name("000001.json.damaged-1").exists()


def test_an_attempt_that_starts_after_its_result_finds_nothing_to_do(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", config_of(designs=2))
    for work in controller.state.outcomes:
        assert controller.layout.attempts(work).is_file()


def test_a_damaged_run_record_is_restored_from_the_journal(tmp_path: Path) -> None:
    layout, config = RunLayout(tmp_path / "run"), config_of()
    config.executor.kind = "local"
    with run.open_controller(layout, config):
        uid = json.loads(layout.record.read_text())["uid"]
    layout.record.write_text('{"uid": "')
    with run.open_controller(layout, config) as again:
        assert any("run.json" in line and "from the journal" in line for line in again.state.recent)
    assert json.loads(layout.record.read_text())["uid"] == uid
    layout.record.write_text("{}")
    layout.journal.unlink()
    with pytest.raises(RecordError, match=r"run\.json.*start a new run"), run.open_controller(layout, config):
        pass


def test_two_controllers_cannot_hold_a_run(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    scheduler = SimulatedScheduler(SimulatedJobs(layout))
    first = controller_of(layout, config_of(), scheduler, Clock())
    with pytest.raises(LeaseError, match=f"pid {os.getpid()}"):
        controller_of(layout, config_of(), scheduler, Clock())
    free(layout)
    second = controller_of(layout, config_of(), scheduler, Clock())
    second.tick()
    with pytest.raises(LeaseError, match="took this run over"):
        for _ in range(30):
            first.tick()


def test_too_little_disk_is_said_before_jobs_start(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    config = config_of()
    config.limits.min_free_megabytes = 1e12
    controller = controller_of(layout, config, SimulatedScheduler(SimulatedJobs(layout)), Clock())
    with pytest.raises(StoreError, match="free some space"):
        controller.tick()
    assert not controller.state.busy


def test_no_experiment_has_more_than_twenty_files(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", config_of())
    for folder in controller.layout.all_experiments():
        assert sum(path.is_file() for path in folder.root.rglob("*")) <= 20
