"""A process that confines itself after its fork: its guard ends it, and names what it exceeded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from asiarch_hpc.errors import SandboxError
from asiarch_hpc.gate.sandbox import confine_process
from tests.gate.conftest import require, sleepers, succeeds, wait_until

Start = Callable[..., tuple[int, int]]


@pytest.fixture
def start(rung: str, tmp_path: Path) -> Start:
    """Forks a process that confines itself and runs a function; gives its id and where its answer can be read."""
    (tmp_path / "inside").mkdir()

    def call(function: Callable[[], str], before: Callable[[], None] = lambda: None) -> tuple[int, int]:
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                before()
                confine_process(memory_gb=0.5, writable=[tmp_path / "inside"], rung=rung, processes=4, file_gb=0.01)
                os.write(writer, function().encode())
            except SandboxError as error:
                os.write(writer, f"guard: {error}".encode())
            finally:
                os._exit(7)
        os.close(writer)
        return process, reader

    return call


def finish(process: int, reader: int) -> tuple[str, int]:
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    answer = os.read(reader, 10_000).decode()
    os.close(reader)
    return answer, code


def test_it_goes_on_confined_with_its_open_files(start: Start, rung: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")

    def work() -> str:
        return f"{succeeds(lambda: (tmp_path / 'secret').read_text())} {os.environ.get('HOME')}"

    answer, code = finish(*start(work))
    require(rung, "reading")
    assert (answer, code) == (f"False {tmp_path / 'inside'}", 7)


def test_its_guard_ends_by_the_same_signal(start: Start) -> None:
    def work() -> str:
        os.kill(os.getpid(), signal.SIGALRM)
        return "alive"

    assert finish(*start(work)) == ("", -signal.SIGALRM)


def test_asking_the_guard_to_end_leaves_nothing(start: Start, rung: str, mark: str) -> None:
    def work() -> str:
        if os.fork() == 0:
            os.setsid()
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", mark])
        time.sleep(600)
        return "alive"

    process, reader = start(work)
    assert wait_until(lambda: sleepers(mark) != [])
    os.kill(process, signal.SIGTERM)
    assert finish(process, reader) == ("", 0)
    assert sleepers(mark) == []


@pytest.mark.parametrize("limit", ["processes", "memory"])
def test_the_guard_says_which_limit_was_exceeded(start: Start, limit: str) -> None:
    def work() -> str:
        for _ in range(3 if limit == "memory" else 6):  # three are within the limit of processes
            if os.fork() == 0:
                kept = bytearray(200 << 20) if limit == "memory" else None
                time.sleep(600)
                del kept
        time.sleep(600)
        return "alive"

    answer, _ = finish(*start(work))
    assert answer.startswith(f"guard: {limit}"), answer


def test_a_signal_while_the_guard_forks_is_not_lost(start: Start) -> None:
    """Logging, for one, has a callback then; an exception raised in it goes no further."""

    def work() -> str:
        time.sleep(600)
        return "alive"

    def before() -> None:
        os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))

    assert finish(*start(work, before)) == ("", 0)


def test_a_bystander_is_unharmed_by_the_end(start: Start, bystander: subprocess.Popen[bytes]) -> None:
    process, reader = start(lambda: str(time.sleep(600)))
    time.sleep(0.2)
    os.kill(process, signal.SIGTERM)
    finish(process, reader)
