"""The local executor with real processes: limit, adoption after a restart, cancelling, deaths without a word."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from asiarch_hpc.config import ExecutorConfig, ResourceConfig
from asiarch_hpc.controller.local import LocalScheduler
from asiarch_hpc.controller.scheduler import JobRequest
from tests.conftest import wait_for
from tests.controller.local_payload import Payload

# A controller that ends before its jobs leaves their handles: that is what is tested here, not a leak.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "a run with spaces" / "jobs"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


def scheduler(folder: Path, seconds: float = 60.0, max_jobs: int = 2) -> LocalScheduler:
    marks = str(folder.parent.parent / "marks")
    return LocalScheduler(
        folder, ExecutorConfig(max_jobs=max_jobs), lambda request: Payload(marks, request.name, seconds)
    )


def request(name: str, cpus: int = 1) -> JobRequest:
    return JobRequest(name=name, kind="train", entry="", arguments={}, resources=ResourceConfig(cpus=cpus))


def mark(folder: Path, name: str) -> Path:
    return folder.parent.parent / "marks" / name


def test_jobs_run_are_seen_by_name_and_end(folder: Path) -> None:
    here = scheduler(folder, seconds=6.0)  # longer than a busy machine takes to start two processes
    assert len(here.submit("run-train-0", [request("run-train-0_0", cpus=3), request("run-train-0_1")])) == 2
    assert set(here.query()) == {"run-train-0_0", "run-train-0_1"}
    wait_for(lambda: mark(folder, "run-train-0_0.ended").exists() and mark(folder, "run-train-0_1.ended").exists(), 60)
    assert mark(folder, "run-train-0_0.started").read_text().split()[1] == "3"
    wait_for(lambda: not here.query(), 60)


def test_jobs_get_the_gpus_that_fewest_hold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    here = scheduler(folder, max_jobs=4)
    jobs = [replace(request(f"run-train-0_{index}"), resources=ResourceConfig(gpus=1)) for index in range(2)]
    here.submit("run-train-0", jobs)
    names = [job.name for job in jobs]
    wait_for(lambda: all(mark(folder, f"{name}.started").exists() for name in names), 60)
    later = scheduler(folder, max_jobs=4)
    later.submit("run-train-1", [replace(request("run-train-1_0"), resources=ResourceConfig(gpus=3))])
    wait_for(lambda: mark(folder, "run-train-1_0.started").exists(), 60)
    held = [mark(folder, f"{name}.started").read_text().split()[2] for name in [*names, "run-train-1_0"]]
    assert held == ["4", "5", "6,7,4"]
    later.cancel([*names, "run-train-1_0"])


def test_a_later_controller_sees_and_cancels_the_jobs_of_its_predecessor(folder: Path) -> None:
    scheduler(folder).submit("run-train-0", [request("run-train-0_0")])
    wait_for(lambda: mark(folder, "run-train-0_0.started").exists(), 60)
    later = scheduler(folder)
    assert set(later.query()) == {"run-train-0_0"}
    later.cancel(["run-train-0_0", "never heard of"])
    assert mark(folder, "run-train-0_0.stopped").exists()
    assert not later.query()


def test_a_job_that_is_killed_is_no_longer_known(folder: Path) -> None:
    here = scheduler(folder)
    here.submit("run-train-0", [request("run-train-0_0")])
    started = wait_for(
        lambda: mark(folder, "run-train-0_0.started").exists() and mark(folder, "run-train-0_0.started"), 60
    )
    wait_for(lambda: started.read_text(), 60)
    os.kill(int(started.read_text().split()[0]), signal.SIGKILL)
    wait_for(lambda: not here.query(), 60)


def test_other_runs_on_the_machine_are_not_ours(folder: Path) -> None:
    other = scheduler(folder.parent.parent / "other run" / "jobs")
    other.submit("run-train-0", [request("run-train-0_0")])
    assert not scheduler(folder).query()
    wait_for(lambda: mark(folder, "run-train-0_0.started").exists(), 60)
    other.cancel(["run-train-0_0"])


def test_room_is_what_the_limit_leaves(folder: Path) -> None:
    assert [scheduler(folder, max_jobs=3).room(n) for n in (0, 2, 3, 9)] == [3, 1, 0, 0]
    assert scheduler(folder, max_jobs=0).room(0) == (os.cpu_count() or 1)
