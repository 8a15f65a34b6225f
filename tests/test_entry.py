"""The last act of a job: one message, only from the newest attempt."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from asiarch_hpc.errors import CorpusError, DesignError, StoppedError
from asiarch_hpc.records import Json
from asiarch_hpc.store.layout import RunLayout
from jobs.entry import Attempt, Entry


def succeed(attempt: Attempt, arguments: Json) -> Json:
    return {"token": attempt.token, **arguments}


def fail_by_design(attempt: Attempt, arguments: Json) -> Json:
    raise DesignError("units do not fit")


def fail_fatally(attempt: Attempt, arguments: Json) -> Json:
    raise CorpusError("/data: not found")


def fail_somehow(attempt: Attempt, arguments: Json) -> Json:
    raise ZeroDivisionError("ours")


def be_interrupted(attempt: Attempt, arguments: Json) -> Json:
    raise StoppedError("at step 7")


def lose_a_child_when_told_to_stop(attempt: Attempt, arguments: Json) -> Json:
    os.kill(os.getpid(), signal.SIGTERM)
    raise ChildProcessError("the training's process was killed by signal 9")


def be_replaced(attempt: Attempt, arguments: Json) -> Json:
    (attempt.layout.attempts(attempt.work) / "002.000").touch()
    return {}


def run(layout: RunLayout, function: str, submission: int = 1) -> Json | None:
    handlers = [signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)]
    try:
        Entry(str(layout.root), "job_0", "work", submission, f"tests.test_entry:{function}", {"x": 1})()
    finally:
        for number, handler in zip((signal.SIGUSR2, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
    path = layout.message("job_0", 0)
    message: Any = json.loads(path.read_text()) if path.exists() else None
    return message


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("succeed", {"status": "ok", "payload": {"token": "001.000", "x": 1}}),
        ("fail_by_design", {"status": "failed", "cause": "DesignError", "message": "units do not fit"}),
        ("fail_fatally", {"status": "fatal", "cause": "CorpusError", "message": "/data: not found"}),
        ("fail_somehow", {"status": "error", "cause": "ZeroDivisionError"}),
        ("be_interrupted", {"status": "interrupted", "message": "at step 7"}),
        (
            "lose_a_child_when_told_to_stop",
            {"status": "interrupted", "message": "the training's process was killed by signal 9"},
        ),
    ],
)
def test_each_end_has_its_message(tmp_path: Path, function: str, expected: Json) -> None:
    message = run(RunLayout(tmp_path), function)
    assert message is not None
    assert expected.items() <= message.items()
    assert (message["work"], message["submission"], message["restart"]) == ("work", 1, 0)


def test_a_restart_counts_as_its_own_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = RunLayout(tmp_path)
    run(layout, "be_interrupted")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    run(layout, "succeed")
    message = json.loads(layout.message("job_0", 2).read_text())
    assert message["payload"]["token"] == "001.002"


@pytest.mark.parametrize("function", ["succeed", "be_replaced"])
def test_whoever_was_replaced_says_nothing(tmp_path: Path, function: str) -> None:
    layout = RunLayout(tmp_path)
    if function == "succeed":
        layout.attempts("work").mkdir(parents=True)
        (layout.attempts("work") / "001.001").touch()
    assert run(layout, function) is None


def test_the_same_attempt_cannot_run_twice(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    assert run(layout, "succeed") is not None
    layout.message("job_0", 0).unlink()
    assert run(layout, "succeed") is None
