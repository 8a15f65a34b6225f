"""Every way in which an isolated call can end has its cause."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asiarch_hpc.errors import SandboxError
from asiarch_hpc.gate.sandbox import (
    RUNGS,
    Outcome,
    bubblewrap,
    choose_rung,
    confine,
    landlock,
    namespaces,
    probe,
    run_isolated,
)


def test_result_and_records_come_back_as_json(run: Callable[..., Outcome], rung: str) -> None:
    def work() -> Iterator[Any]:
        yield {"a": 1}
        yield [2.5, None]
        return "done"

    outcome = run(work)
    assert (outcome.result, outcome.records, outcome.cause, outcome.rung) == (
        "done",
        ({"a": 1}, [2.5, None]),
        None,
        rung,
    )
    assert run(lambda: 7).result == 7


def test_torch_computes_inside(run: Callable[..., Outcome]) -> None:
    outcome = run(lambda: float((torch.ones(64, 64) @ torch.ones(64, 64)).sum()))
    assert outcome.result == 64.0**3


def test_an_exception_is_told_with_its_traceback(run: Callable[..., Outcome]) -> None:
    def work() -> None:
        raise LookupError("no such layer")

    outcome = run(work)
    assert outcome.cause == "exception"
    assert outcome.error == "LookupError: no such layer"
    assert "in work" in outcome.traceback


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()])
def test_exits_and_interrupts_are_exceptions(run: Callable[..., Outcome], error: BaseException) -> None:
    def work() -> None:
        raise error

    outcome = run(work)
    assert outcome.cause == "exception"
    assert type(error).__name__ in outcome.error


def test_endless_loop(run: Callable[..., Outcome]) -> None:
    def work() -> Iterator[int]:
        yield 1
        while True:
            pass

    outcome = run(work, timeout_s=0.7)
    assert (outcome.cause, outcome.records) == ("timeout", (1,))
    assert outcome.seconds < 15


def test_a_signal_that_is_ignored_does_not_outlive_the_timeout(run: Callable[..., Outcome]) -> None:
    def work() -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(600)

    assert run(work, timeout_s=0.5).cause == "timeout"


def test_slurms_warning_reaches_all_and_ends_nobody(run: Callable[..., Outcome]) -> None:
    def warn() -> None:
        time.sleep(0.4)
        for process in confine.descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGUSR2)

    def work() -> bool:
        time.sleep(0.8)
        return True

    thread = threading.Thread(target=warn)
    thread.start()
    assert run(work).result is True
    thread.join()


@pytest.mark.parametrize("piece", [lambda: torch.ones(1 << 22), lambda: bytearray(1 << 24)], ids=["torch", "python"])
def test_endless_allocation(run: Callable[..., Outcome], piece: Callable[[], Any]) -> None:
    def work() -> None:
        kept = []
        while True:
            kept.append(piece())

    assert run(work, memory_gb=0.25).cause == "memory"


def test_memory_of_all_descendants_counts(run: Callable[..., Outcome]) -> None:
    def work() -> None:
        for _ in range(4):
            if os.fork() == 0:
                kept = bytearray(100 << 20)
                time.sleep(600)
                del kept
        time.sleep(600)

    assert run(work, memory_gb=0.25).cause == "memory"


def test_forking_without_end(run: Callable[..., Outcome]) -> None:
    def work() -> None:
        while True:
            os.fork()
            time.sleep(0.05)

    assert run(work, processes=8).cause == "processes"


def test_early_exit(run: Callable[..., Outcome]) -> None:
    outcome = run(lambda: os._exit(0))
    assert outcome.cause == "ended early"
    assert "exit code 0" in outcome.error


def test_crash(run: Callable[..., Outcome]) -> None:
    assert run(lambda: os.kill(os.getpid(), signal.SIGSEGV)).cause == "killed by signal 11"


def test_much_output_is_drained_and_its_end_kept(run: Callable[..., Outcome]) -> None:
    def work() -> None:
        for _ in range(200):
            print("x" * 100_000)
        print("the end")

    outcome = run(work)
    assert outcome.ok
    assert outcome.output_bytes > 20_000_000
    assert len(outcome.output) <= 1 << 16
    assert outcome.output.endswith("the end\n")


def test_output_without_end(run: Callable[..., Outcome]) -> None:
    def work() -> None:
        while True:
            print("x" * 100_000)

    outcome = run(work, timeout_s=0.7)
    assert outcome.cause == "timeout"
    assert outcome.seconds < 15


def test_closed_descriptors(run: Callable[..., Outcome]) -> None:
    assert run(lambda: os.closerange(0, 100)).cause == "ended early"


@pytest.mark.parametrize("junk", [b"junk\n", b"[1]\n", b'"result"\n', b'{"error": 1}\n', b"[" * 100_000 + b"\n"])
def test_bytes_that_are_no_answer(run: Callable[..., Outcome], junk: bytes) -> None:
    assert run(lambda: os.write(3, junk)).cause == "protocol"


def test_a_flood_of_answer_bytes(run: Callable[..., Outcome]) -> None:
    def work() -> None:
        while True:
            os.write(3, b"x" * 65536)

    assert run(work).cause == "output"


def test_the_caller_may_have_threads(run: Callable[..., Outcome]) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert run(lambda: threading.active_count()).result == 1
    finally:
        stop.set()
        thread.join()


def test_auto_takes_the_strongest_that_works() -> None:
    assert choose_rung("auto") == next(name for name in RUNGS if not probe(name))


def test_wrong_rungs_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="expected auto or one of"):
        choose_rung("jail")
    missing = tmp_path / "missing"
    for paths in ({"writable": [missing]}, {"writable": []}, {"writable": [tmp_path], "readable": [missing]}):
        with pytest.raises(SandboxError, match=r"no such folder|none was given|do not exist"):
            run_isolated(lambda: 1, timeout_s=5, memory_gb=1, **paths)


@pytest.fixture
def fresh_probes() -> Iterator[None]:
    probe.cache_clear()
    yield
    probe.cache_clear()


def refuse(*words: Any, **named: Any) -> Any:
    raise PermissionError("switched off")


@pytest.mark.usefixtures("fresh_probes")
def test_a_rung_that_cannot_be_set_up_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "enter_namespaces", refuse)
    with pytest.raises(SandboxError, match="switched off"):
        choose_rung("namespaces")
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match="no program"):
        choose_rung("bubblewrap")
    assert choose_rung("auto") == "landlock"


@pytest.mark.usefixtures("fresh_probes")
def test_a_rung_that_does_not_hold_what_it_claims_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "restrict_files", lambda **rules: None)
    reason = probe("landlock")
    assert "write outside" in reason
    assert "read a file" in reason


@pytest.mark.usefixtures("fresh_probes")
def test_auto_never_falls_to_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "enter_namespaces", refuse)
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    monkeypatch.setattr(landlock, "restrict_files", refuse)
    with pytest.raises(SandboxError, match=r"bubblewrap: .*namespaces: .*landlock: .*gate\.sandbox=limits"):
        choose_rung("auto")
    assert choose_rung("limits") == "limits"
