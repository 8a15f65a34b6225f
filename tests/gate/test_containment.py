"""What a child tries on its surroundings, on every rung that claims to hold it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asiarch_hpc.gate.sandbox import Outcome, containment, landlock, seccomp
from asiarch_hpc.gate.sandbox.syscalls import syscall
from tests.gate.conftest import require, sleepers, succeeds, wait_until

ROOT = Path(__file__).resolve().parents[2]
OWN_PROCESSES = ("bubblewrap", "namespaces")


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


def test_killing_its_parent(run: Callable[..., Outcome], rung: str, bystander: subprocess.Popen[bytes]) -> None:
    def work() -> str:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
        return "unharmed"

    outcome = run(work)
    # With process ids of its own it has no parent, and 0 means its own group.
    unheld = rung == "limits" and not seccomp.available()
    expected = "killed by signal 9" if rung in OWN_PROCESSES or unheld else "exception"
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


def test_other_processes_can_be_neither_traced_nor_set(
    run: Callable[..., Outcome], rung: str, bystander: subprocess.Popen[bytes]
) -> None:
    require(rung, "signals")
    other = bystander.pid
    attempts: dict[str, Callable[[], Any]] = {
        "ptrace": lambda: syscall(seccomp.number("ptrace"), 16, other, 0, 0),
        "read memory": lambda: Path(f"/proc/{other}/mem").read_bytes(),
        "read environment": lambda: Path(f"/proc/{other}/environ").read_bytes(),
        "limits": lambda: resource.prlimit(other, resource.RLIMIT_CPU, (1, 1)),
        "priority": lambda: os.setpriority(os.PRIO_PROCESS, other, 19),
        "priority of all": lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19),
        "processors": lambda: os.sched_setaffinity(other, {0}),
        "scheduler": lambda: os.sched_setscheduler(other, os.SCHED_IDLE, os.sched_param(0)),
        "signal by a file": lambda: fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, other),
        "process descriptor": lambda: signal.pidfd_send_signal(os.pidfd_open(other), signal.SIGKILL),
    }

    def work() -> list[str]:
        return [name for name, attempt in attempts.items() if succeeds(attempt)]

    allowed = set(run(work).result)
    # The whole user is then the one of the own namespace, whose processes are all of the family.
    assert allowed <= ({"priority of all"} if rung in OWN_PROCESSES else set()), allowed
    if rung in OWN_PROCESSES:
        assert os.getpriority(os.PRIO_PROCESS, other) == 0


def test_network(run: Callable[..., Outcome], rung: str) -> None:
    require(rung, "tcp")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.3)
        tcp_address, udp_address = server.getsockname(), udp.getsockname()

        def work() -> bool:
            with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"secret", udp_address)
            return succeeds(lambda: socket.create_connection(tcp_address, timeout=2).close())

        assert run(work).result is False
        assert run(work, gpu=True).result is False
        if "network" in containment(rung):
            with pytest.raises(TimeoutError):
                udp.recv(16)
        assert run(work, network=True).result is True


@pytest.mark.parametrize("arguments", [{}, {"gpu": True}, {"network": True}], ids=["cpu", "gpu", "network"])
def test_services_behind_local_sockets(
    run: Callable[..., Outcome], rung: str, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    if "unix sockets" not in containment(rung, network="network" in arguments):
        pytest.skip(f"rung {rung} does not claim to hold local sockets then")
    # Short names: an address of a socket has at most 108 bytes.
    with tempfile.TemporaryDirectory(prefix="as-") as folder, socket.socket(socket.AF_UNIX) as service:
        path = f"{folder}/service"
        service.bind(path)
        service.listen()

        def work() -> bool:
            def connect() -> None:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(path)

            return succeeds(connect)

        assert run(work, **arguments).result is False


def test_a_pair_of_sockets_works(run: Callable[..., Outcome]) -> None:
    def work() -> str:
        one, other = socket.socketpair()
        one.send(b"hello")
        return other.recv(16).decode()

    assert run(work).result == "hello"


def test_new_namespaces_and_other_interfaces_of_the_kernel(run: Callable[..., Outcome]) -> None:
    if not seccomp.available():
        pytest.skip("this kernel does not filter system calls")

    def work() -> list[str]:
        calls = dict.fromkeys(("mount", "setns", "bpf", "keyctl", "userfaultfd", "io_uring_setup"), (0,) * 5)
        calls |= {"unshare": (0x10000000, 0, 0, 0, 0), "clone3": (0, 0, 0, 0, 0), "memfd_create": (0, 0, 0, 0, 0)}
        errors = {}
        for name, words in calls.items():
            try:
                syscall(seccomp.number(name), *words)
            except OSError as error:
                errors[name] = error.errno
        return [name for name in calls if errors.get(name) not in (errno.EPERM, errno.ENOSYS)]

    assert run(work).result == []


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
    # Without Landlock, the bubble's first process is in reach; it is confined as the child is.
    first = "/proc/1/root/x" if rung == "bubblewrap" and not landlock.landlock_abi() else "/proc/1/mem"
    paths = ("/proc/self/comm", first, "/proc/sys/kernel/domainname", tmp_path / "outside")

    def work() -> list[bool]:
        return [succeeds(lambda path=path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT))) for path in paths]

    assert run(work, gpu=True).result == [True, False, False, False]
    if landlock.landlock_abi():
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
