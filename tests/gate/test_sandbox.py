from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asiarch_hpc.errors import SandboxError
from asiarch_hpc.gate import confine
from asiarch_hpc.gate.sandbox import RUNGS, Outcome, choose_rung, containment, probe, run_isolated

ROOT = Path(__file__).resolve().parents[2]


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


def require(rung: str, threat: Any) -> None:
    if threat not in containment(rung):
        pytest.skip(f"rung {rung} does not claim to hold {threat!r} on this kernel")


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


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


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
            time.sleep(0.01)

    assert run(work, processes=16).cause == "processes"


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


def test_caller_secrets_and_files_are_out_of_reach(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    with (tmp_path / "open.txt").open("w") as opened:
        descriptor = opened.fileno()

        def work() -> list[Any]:
            try:
                os.write(descriptor, b"spoiled")
                wrote = True
            except OSError:
                wrote = False
            return [os.environ.get("SECRET_TOKEN"), "SECRET" in Path("/proc/self/environ").read_text(), wrote]

        assert run(work).result == [None, False, False]
    assert (tmp_path / "open.txt").read_text() == ""


def test_environment_block_of_the_caller_is_wiped(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from asiarch_hpc.gate.sandbox import run_isolated
        look = lambda: Path("/proc/self/environ").read_text().strip(chr(0))
        assert "s3cret" in look()
        print(repr(run_isolated(look, timeout_s=30, memory_gb=1, writable=[Path(sys.argv[1])]).result))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        env={**os.environ, "TOKEN": "s3cret", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "''"


def test_folder_of_its_own_is_home_and_temporary_folder(run: Callable[..., Outcome], tmp_path: Path) -> None:
    def work() -> str:
        import tempfile

        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x")
            return str(Path(file.name).parent)

    assert run(work).result == str(tmp_path / "inside")


def test_file_size_is_limited(run: Callable[..., Outcome], tmp_path: Path) -> None:
    def work() -> None:
        with (tmp_path / "inside" / "large").open("wb") as file:
            for _ in range(64):
                file.write(b"x" * (1 << 20))

    outcome = run(work, file_gb=8 / 1024)
    assert outcome.cause == "exception"
    assert (tmp_path / "inside" / "large").stat().st_size <= 8 << 20


def test_writes_outside(run: Callable[..., Outcome], rung: str, tmp_path: Path) -> None:
    require(rung, "files")
    kept = tmp_path / "kept"
    kept.write_text("mine")
    attempts: list[Callable[[], Any]] = [
        lambda: (tmp_path / "new").write_text("x"),
        lambda: kept.write_text("x"),
        lambda: os.truncate(kept, 0),
        lambda: kept.unlink(),
        lambda: kept.rename(tmp_path / "inside" / "stolen"),
        lambda: os.mkdir(tmp_path / "folder"),
        lambda: os.symlink(kept, tmp_path / "link"),
        lambda: os.link(kept, tmp_path / "inside" / "hard"),
        lambda: Path("/dev/shm/asiarch-escape").write_text("x"),
    ]

    def work() -> list[int]:
        succeeded = []
        for number, attempt in enumerate(attempts):
            try:
                attempt()
                succeeded.append(number)
            except OSError:
                pass
        (tmp_path / "inside" / "allowed").write_text("x")
        Path("/dev/null").write_text("x")
        return succeeded

    outcome = run(work)
    assert outcome.result == [], outcome
    assert kept.read_text() == "mine"


def test_killing_its_parent(run: Callable[..., Outcome], rung: str, bystander: subprocess.Popen[bytes]) -> None:
    def work() -> str:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
        return "unharmed"

    outcome = run(work)
    expected = "exception" if "signals" in containment(rung) else "killed by signal 9"
    assert outcome.cause == expected, outcome


def test_killing_everything(run: Callable[..., Outcome], rung: str, bystander: subprocess.Popen[bytes]) -> None:
    require(rung, "signals")
    caller = os.getpid()

    def work() -> str:
        for process in (caller, bystander.pid):
            try:
                os.kill(process, 0)
                return f"could signal {process}: not going on"
            except OSError:
                pass
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)
        return "unharmed"

    assert run(work).result == "unharmed"


def test_ptrace_and_priorities_of_others(run: Callable[..., Outcome], rung: str) -> None:
    require(rung, "signals")
    caller = os.getpid()

    def work() -> bool:
        return confine._libc().ptrace(16, caller, 0, 0) == 0

    assert run(work).result is False


def test_network(run: Callable[..., Outcome], rung: str) -> None:
    require(rung, "tcp")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.3)
        tcp_address, udp_address = server.getsockname(), udp.getsockname()

        def work() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
                sender.sendto(b"secret", udp_address)
            try:
                socket.create_connection(tcp_address, timeout=2).close()
                return True
            except OSError:
                return False

        assert run(work).result is False
        if "network" in containment(rung):
            with pytest.raises(TimeoutError):
                udp.recv(16)
        assert run(work, network=True).result is True


def test_daemons_end_with_the_call(run: Callable[..., Outcome], mark: str) -> None:
    def work() -> str:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", mark])
            os._exit(0)
        time.sleep(0.3)
        return "left a daemon"

    assert run(work).result == "left a daemon"
    assert sleepers(mark) == []


def test_daemons_end_when_the_caller_is_killed(rung: str, mark: str, tmp_path: Path) -> None:
    script = """
        import os, sys, time
        from pathlib import Path
        from asiarch_hpc.gate.sandbox import run_isolated
        def work():
            for _ in range(2):
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", sys.argv[3]])
                    os._exit(0)
            time.sleep(600)
        run_isolated(work, timeout_s=600, memory_gb=1, writable=[Path(sys.argv[1])], rung=sys.argv[2])
    """
    caller = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), rung, mark],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        # The caller and its forks carry the mark in their command lines too: caller, supervisors, child, daemons.
        assert wait_until(lambda: len(sleepers(mark)) >= 5)
    finally:
        caller.kill()
        caller.wait()
    assert wait_until(lambda: sleepers(mark) == []), sleepers(mark)


def test_gpu_mode_limits_by_use_instead_of_address_space(run: Callable[..., Outcome]) -> None:
    def reserve() -> bool:
        import mmap

        return len(mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) > 0

    assert run(reserve).ok is False
    assert run(reserve, gpu=True).result is True

    def use() -> None:
        kept = []
        while True:
            kept.append(bytearray(1 << 24))

    assert run(use, gpu=True, memory_gb=0.25).cause == "memory"


def test_the_caller_may_have_threads(run: Callable[..., Outcome]) -> None:
    import threading

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
    with pytest.raises(SandboxError, match="do not exist"):
        run_isolated(lambda: 1, timeout_s=5, memory_gb=1, writable=[tmp_path / "missing"])


def test_a_rung_that_cannot_be_set_up_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*, network: bool) -> None:
        raise PermissionError("user namespaces are switched off")

    monkeypatch.setattr(confine, "enter_namespaces", refuse)
    probe.cache_clear()
    try:
        assert choose_rung("auto") != "namespaces"
        with pytest.raises(SandboxError, match="user namespaces are switched off"):
            choose_rung("namespaces")
    finally:
        monkeypatch.undo()
        probe.cache_clear()


def test_a_rung_that_does_not_hold_what_it_claims_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "restrict_writes", lambda paths, *, network: None)
    probe.cache_clear()
    try:
        assert "write outside" in probe("landlock")
        assert choose_rung("auto") == "limits"
    finally:
        monkeypatch.undo()
        probe.cache_clear()
