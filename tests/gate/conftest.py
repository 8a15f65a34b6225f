"""Fixtures that run a function in a sandbox, once for each rung that works here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asiarch_hpc.gate.sandbox import RUNGS, Outcome, containment, probe, run_isolated


@pytest.fixture(params=RUNGS)
def rung(request: pytest.FixtureRequest) -> str:
    reason = probe(request.param)
    if reason:
        pytest.skip(f"rung {request.param} does not work on this machine: {reason}")
    return str(request.param)


@pytest.fixture
def run(rung: str, tmp_path: Path) -> Callable[..., Outcome]:
    inside = tmp_path / "inside"
    inside.mkdir()

    def call(function: Callable[[], Any], **changes: Any) -> Outcome:
        arguments = {"timeout_s": 30.0, "memory_gb": 1.0, "writable": [inside], "rung": rung}
        return run_isolated(function, **(arguments | changes))

    return call


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user that no child may harm."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    assert process.poll() is None, "the bystander was harmed"
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


@pytest.fixture
def mark(rung: str) -> Iterator[str]:
    """A word for the command lines of a test's processes; none of them outlives the test."""
    word = f"asiarch-left-{os.getpid()}-{rung}"
    yield word
    for process in sleepers(word):
        os.kill(process, signal.SIGKILL)


def sleepers(mark: str) -> list[int]:
    """Processes whose command line carries the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def require(rung: str, threat: Any) -> None:
    if threat not in containment(rung):
        pytest.skip(f"rung {rung} does not claim to hold {threat!r} on this kernel")


def succeeds(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
