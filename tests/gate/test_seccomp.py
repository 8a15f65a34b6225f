"""The filter of system calls: its numbers, its program on both architectures, and that honest work passes it."""

from __future__ import annotations

import ctypes
import errno
import platform
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.gate.sandbox import Outcome, probe, run_isolated, seccomp

ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OWN = 4321
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def verdict(machine: str, call: str | int, *arguments: int, arch: int | None = None, **options: Any) -> int:
    """0 where the filter allows a call, else the errno that it answers with; runs the program as the kernel does."""
    words = {"families": (), "connect": False, "alone": False, "memory_files": False} | options
    code = seccomp.assemble(seccomp.Filter(**words), process=OWN, machine=machine)
    program = list(struct.iter_unpack("HBBI", code))
    number = call if isinstance(call, int) else seccomp.NUMBERS[call][list(ARCHES).index(machine)]
    assert number is not None
    values = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, ARCHES[machine] if arch is None else arch, 0, *(w % 2**64 for w in values))
    place = accumulator = 0
    while True:
        code, if_true, if_false, constant = program[place]
        place += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif code == 0x54:
            accumulator &= constant
        elif code == 0x06:
            assert constant in (0x7FFF0000, *(0x00050000 | n for n in (errno.EPERM, errno.ENOSYS)))
            return constant & 0xFFFF if constant != 0x7FFF0000 else 0
        else:
            holds = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: bool(accumulator & constant)}
            place += if_true if holds[code] else if_false


@pytest.mark.parametrize("machine", ARCHES)
def test_numbers_are_those_of_the_kernel(machine: str) -> None:
    if not HEADERS[machine].is_file():
        pytest.skip(f"no {HEADERS[machine]} here to compare with")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text()))
    column = list(ARCHES).index(machine)
    compared = [name for name in seccomp.NUMBERS if name in found]
    assert {name: str(seccomp.NUMBERS[name][column]) for name in compared} == {name: found[name] for name in compared}
    assert len(compared) > 80


@pytest.mark.parametrize("machine", ARCHES)
def test_other_interfaces_of_the_processor_are_closed(machine: str) -> None:
    assert verdict(machine, 39, arch=0x40000003) == errno.ENOSYS  # 32-bit x86
    assert verdict("x86_64", 0x40000000 | 39) == errno.ENOSYS
    assert verdict(machine, 39 if machine == "x86_64" else 172) == 0  # getpid


@pytest.mark.parametrize("machine", ARCHES)
def test_sockets_by_family(machine: str) -> None:
    assert [verdict(machine, "socket", family) for family in (1, 2, 10, 16, 17, 38, 40)] == [errno.EPERM] * 7
    allowed = [verdict(machine, "socket", family, families=seccomp.NETWORK_FAMILIES) for family in (1, 2, 10, 16, 27)]
    assert allowed == [0] * 5
    assert verdict(machine, "socket", 40, families=seccomp.NETWORK_FAMILIES) == errno.EPERM  # vsock
    stream, datagram, close_on_exec = 1, 2, 0o2000000
    unix = {"families": (seccomp.AF_UNIX,)}
    assert verdict(machine, "socket", 1, stream | close_on_exec, **unix) == 0
    assert verdict(machine, "socket", 1, datagram | close_on_exec, **unix) == errno.EPERM
    assert verdict(machine, "connect", **unix) == errno.EPERM
    assert verdict(machine, "socket", 1, datagram, connect=True, **unix) == 0
    assert verdict(machine, "connect", connect=True, **unix) == 0


@pytest.mark.parametrize("machine", ARCHES)
@settings(deadline=None, max_examples=40)
@given(flags=st.integers(0, 2**32 - 1))
def test_clone_makes_processes_and_threads_but_no_namespaces(machine: str, flags: int) -> None:
    new = 0x7E020000
    assert verdict(machine, "clone", flags) == (errno.EPERM if flags & new else 0)
    assert verdict(machine, "clone3") == errno.ENOSYS


@pytest.mark.parametrize("machine", ARCHES)
@settings(deadline=None, max_examples=40)
@given(target=st.integers(-(2**31), 2**31 - 1))
def test_signals_reach_itself_alone_where_others_are_in_reach(machine: str, target: int) -> None:
    expected = 0 if target in (OWN, 0) else errno.EPERM
    assert verdict(machine, "kill", target, 9) == expected
    assert verdict(machine, "tgkill", target, 1, 9) == (0 if target == OWN else errno.EPERM)
    assert verdict(machine, "prlimit64", target) == expected
    assert verdict(machine, "kill", target, 9, alone=True) == 0
    assert verdict(machine, "pidfd_send_signal", target, alone=True) == errno.EPERM


@pytest.mark.parametrize("machine", ARCHES)
@settings(deadline=None, max_examples=40)
@given(request=st.integers(0, 2**64 - 1))
def test_requests_by_their_lower_half(machine: str, request: int) -> None:
    """The kernel looks at 32 bits of a request: what stands in the others must not hide a refused one."""
    high = request & ~0xFFFFFFFF
    for bad in (0x5412, 0x541C, 0x8901):
        assert verdict(machine, "ioctl", 0, high | bad) == errno.EPERM
    assert verdict(machine, "fcntl", 0, high | 8) == errno.EPERM
    assert verdict(machine, "ioctl", 0, high | 0x5401) == 0  # the size of a terminal
    assert verdict(machine, "fcntl", 0, high | 3) == 0


@pytest.mark.parametrize("machine", ARCHES)
def test_a_file_opened_for_reading_is_not_emptied(machine: str) -> None:
    read_only, write_only, truncate = 0, 1, 0o1000
    assert verdict(machine, "openat", 0, 0, read_only | truncate) == errno.EPERM
    assert verdict(machine, "openat", 0, 0, write_only | truncate) == 0  # Landlock asks for the right to write
    assert verdict(machine, "openat", 0, 0, read_only) == 0
    assert verdict(machine, "openat", 0, 0, read_only | truncate, alone=True) == 0
    assert verdict("x86_64", "open", 0, read_only | truncate) == errno.EPERM


@pytest.mark.parametrize("machine", ARCHES)
def test_what_is_never_allowed(machine: str) -> None:
    for name in ("ptrace", "mount", "unshare", "setns", "bpf", "keyctl", "io_uring_setup", "perf_event_open", "reboot"):
        for alone in (False, True):
            assert verdict(machine, name, alone=alone) == errno.EPERM, name
    for name in ("fchmodat", "utimensat", "fsetxattr", "fchownat", "shmget", "mq_open"):
        assert verdict(machine, name) == errno.EPERM, name
        assert verdict(machine, name, alone=True) == 0, name


def test_an_unknown_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert seccomp.available() is False
    with pytest.raises(OSError, match="riscv64"):
        seccomp.restrict_calls(seccomp.Filter(families=(), connect=False, alone=True, memory_files=False))


def test_threads_and_processes_work_inside(run: Callable[..., Outcome]) -> None:
    def work() -> list[Any]:
        done = []
        thread = threading.Thread(target=lambda: done.append(1))
        thread.start()
        thread.join()
        done.append(subprocess.run(["cat"], input="2", capture_output=True, text=True, check=True).stdout)
        done.append(float(torch.ones(512, 512).matmul(torch.ones(512, 512))[0, 0]))
        return done

    assert run(work).result == [1, "2", 512.0]


def test_compiled_code_can_be_made_and_loaded(run: Callable[..., Outcome]) -> None:
    """As Triton does for its launchers."""
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler on this machine")

    def work() -> int:
        folder = Path(tempfile.mkdtemp())
        (folder / "code.c").write_text("#include <stdlib.h>\nint twice(int x) { return abs(2 * x); }\n")
        command = ["gcc", "-O2", "-shared", "-fPIC", str(folder / "code.c"), "-o", str(folder / "code.so")]
        subprocess.run(command, check=True)
        return int(ctypes.CDLL(str(folder / "code.so")).twice(-21))

    outcome = run(work)
    assert outcome.result == 42, outcome


@pytest.mark.slow
def test_torch_compiles_inside(tmp_path: Path) -> None:
    """On the rung that refuses most: no modes, no signals between processes."""
    reason = probe("landlock") or ("" if shutil.which("g++") else "no C++ compiler on this machine")
    if reason:
        pytest.skip(reason)

    def work() -> bool:
        warnings.simplefilter("ignore")  # torch's own, of parts that it deprecates
        # Their folder is fixed when inductor is imported, which may have been in the caller, outside the sandbox.
        torch._inductor.config.cpp_cache_precompile_headers = False

        def function(x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x) * 2 + 1

        x = torch.arange(8.0)
        return bool(torch.allclose(torch.compile(function)(x), function(x)))

    outcome = run_isolated(work, timeout_s=240.0, memory_gb=8.0, writable=[tmp_path], rung="landlock")
    assert outcome.result is True, outcome
