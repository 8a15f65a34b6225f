"""What a child tries on its surroundings, on every rung that claims to hold it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asiarch_hpc.gate import confine
from asiarch_hpc.gate.sandbox import Outcome, containment
from tests.gate.conftest import sleepers

ROOT = Path(__file__).resolve().parents[2]


def require(rung: str, threat: Any) -> None:
    if threat not in containment(rung):
        pytest.skip(f"rung {rung} does not claim to hold {threat!r} on this kernel")


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


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


def test_gpu_mode_opens_nothing_of_other_processes(run: Callable[..., Outcome], rung: str, tmp_path: Path) -> None:
    require(rung, "files")

    def work() -> list[bool]:
        allowed = []
        for path in ("/proc/self/comm", "/proc/1/comm", "/proc/sys/kernel/domainname", tmp_path / "outside"):
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
                allowed.append(True)
            except OSError:
                allowed.append(False)
        return allowed

    assert run(work, gpu=True).result == [True, False, False, False]
    assert run(work).result == [False, False, False, False]


@pytest.mark.gpu
@pytest.mark.sandboxed
def test_cuda_works_inside_when_it_may(run: Callable[..., Outcome]) -> None:
    def work() -> list[Any]:
        if not torch.cuda.is_available():
            return []
        x = torch.ones(256, 256, device="cuda", requires_grad=True)
        (x @ x).sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return [float(x.grad[0, 0])]

    assert run(work, gpu=True, memory_gb=16.0, timeout_s=120.0).result == [512.0]
    assert run(work).result == []
