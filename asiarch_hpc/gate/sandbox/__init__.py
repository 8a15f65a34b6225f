"""Runs a function in a confined child process, so that the untrusted code it calls can harm nothing else.

The process that calls `run_isolated` forks a guard, which makes the rung's surroundings and forks the child into them.
The caller watches time, memory, process count, files and output; the guard alone ends what is left of the family, and
does so as well when the caller dies. Children answer in JSON lines: bytes from an untrusted process are never
unpickled. `confine_process` does the same to a process that is forked already and talks to its parent in its own way.

Rungs, in the order in which "auto" tries them (`containment` lists what each holds; README.md has the table):
  bubblewrap  own users, process ids, network, message queues and mounts, made by the program bwrap
  namespaces  the same, made here by system calls
  landlock    the same files, by Landlock; the rest by the filter of system calls
  limits      time, memory and the filter: the child can read and write wherever its user can. Never by "auto"
The first two add Landlock where the kernel has it, and every rung the filter of system calls (`seccomp`).

The caller should be single-threaded, or at least call from a thread that lives on (the kernel ends the family with
the thread that forked it). For children with `gpu` it must not have touched CUDA: even `torch.cuda.is_available()`
leaves a CUDA, or with PYTORCH_NVML_BASED_CUDA_CHECK=1 an NVML, that does not work in forked children. Open files of the
caller are closed in the child; what it has in memory is copied there, so it must hold no secrets when it calls.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from asiarch_hpc.errors import SandboxError
from asiarch_hpc.gate.sandbox import confine, landlock, seccomp
from asiarch_hpc.gate.sandbox.census import Census
from asiarch_hpc.gate.sandbox.family import Pipes, guard_myself, supervise
from asiarch_hpc.gate.sandbox.plan import Plan
from asiarch_hpc.gate.sandbox.probes import prepare, succeeded
from asiarch_hpc.gate.sandbox.view import SHARED_MEMORY, view_of
from asiarch_hpc.gate.sandbox.watch import Watch
from asiarch_hpc.processes import fork

Rung = Literal["bubblewrap", "namespaces", "landlock", "limits"]
RUNGS: tuple[Rung, ...] = ("bubblewrap", "namespaces", "landlock", "limits")
Threat = Literal[
    "time", "memory", "processes", "files", "modes", "reading", "signals", "tcp", "network", "unix sockets"
]
_FILES = 20_000  # entries that the writable paths may grow by, unless a call says otherwise
_OWN: tuple[str, ...] = ("bubblewrap", "namespaces")  # with surroundings of their own


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one isolated call.

    `cause` is None when the function returned; else "timeout", "memory", "processes", "output", "exception",
    "ended early" (the process exited without an answer), "killed by signal N", or "protocol" (its answer is not
    what the sandbox writes). `error` is one line, `traceback` the tail of the child's traceback. `result` is the
    function's return value, `records` what it yielded, both from JSON. `attempts` are calls for files, processes and
    the like by code without a file (`attempts`), granted or not. `output` is the tail of what was printed,
    `output_bytes` all of it.
    """

    result: Any = None
    records: tuple[Any, ...] = ()
    attempts: tuple[str, ...] = ()
    cause: str | None = None
    error: str = ""
    traceback: str = ""
    seconds: float
    rung: Rung
    output: str = ""
    output_bytes: int = 0

    @property
    def ok(self) -> bool:
        return self.cause is None


def run_isolated(
    function: Callable[[], Any],
    *,
    timeout_s: float,
    memory_gb: float,
    writable: Sequence[Path],
    readable: Sequence[Path] = (),
    rung: str = "auto",
    threads: int = 1,
    gpu: bool = False,
    network: bool = False,
    processes: int = 64,
    file_gb: float = 16.0,
    disk_gb: float | None = None,
    files: int = _FILES,
) -> Outcome:
    """Calls `function` in a confined child process and waits for it; leaves no process behind.

    Args:
        function: returns a JSON value. If it is a generator function, each value it yields is sent at once and
            survives the child's death. It inherits the caller's memory, not its open files or environment.
        timeout_s: wall-clock seconds.
        memory_gb: GiB that the child and its descendants may add to what they inherit.
        writable: existing folders, or files, that may be changed; the first is a folder, the child's TMPDIR and HOME.
        readable: what the child must read beside Python, its packages, this project's code and the system's
            programs and libraries; it may open nothing else.
        rung: "auto" takes the first that works here, but never "limits".
        threads: of torch and OpenMP in the child.
        gpu: lets the child use GPU devices; memory is then watched instead of limited by address space, which
            CUDA reserves without using.
        network: leaves the network and the interconnect reachable, for trainings of several processes. With `gpu` the
            machine's shared memory and abstract sockets too, by which NCCL connects processes on one node.
        processes: descendants alive at once.
        file_gb: GiB of one file.
        disk_gb: GiB that `writable` may grow by; four times `file_gb` by default.
        files: entries that `writable` may grow by.

    Raises:
        SandboxError: the rung does not work on this machine, CUDA is initialised in the caller, a path of
            `writable` or `readable` is missing.
    """
    plan = _plan(
        rung=choose_rung(rung),
        timeout_s=timeout_s,
        memory_gb=memory_gb,
        writable=writable,
        readable=readable,
        threads=threads,
        gpu=gpu,
        network=network,
        processes=processes,
        file_gb=file_gb,
        disk_gb=disk_gb,
        files=files,
    )
    return _run(function, plan)


def confine_process(
    *,
    memory_gb: float,
    writable: Sequence[Path],
    readable: Sequence[Path] = (),
    rung: str = "auto",
    threads: int = 1,
    gpu: bool = False,
    processes: int = 64,
    file_gb: float = 1.0,
) -> None:
    """Confines the calling process, a fork of another one with a single thread: returns in a child of it that is
    confined as one of `run_isolated`, without a limit of time, and keeps its open files.

    The calling process itself stays as that child's guard. It ends as the child does; SIGTERM, or its parent's end,
    makes it end the child and all that the child started.

    Raises:
        SandboxError: the rung cannot be set up; in the guard, when the family exceeded a limit and was ended.
    """
    plan = _plan(
        rung=choose_rung(rung),
        timeout_s=None,
        memory_gb=memory_gb,
        writable=writable,
        readable=readable,
        threads=threads,
        gpu=gpu,
        processes=processes,
        file_gb=file_gb,
    )
    try:
        guard_myself(plan, os.getppid())
    except OSError as error:
        raise SandboxError(f"sandbox rung {plan.rung!r} failed: {error}") from error


def _plan(
    *,
    rung: str,
    timeout_s: float | None,
    memory_gb: float,
    writable: Sequence[Path],
    processes: int,
    file_gb: float,
    readable: Sequence[Path] = (),
    threads: int = 1,
    gpu: bool = False,
    network: bool = False,
    disk_gb: float | None = None,
    files: int = _FILES,
) -> Plan:
    if not writable or not Path(writable[0]).is_dir():
        first = f"{writable[0]}: no such folder" if writable else "none was given"
        raise SandboxError(f"the first writable path must be a folder that exists: {first}; create one before")
    devices = [*(confine.gpu_paths() if gpu else []), *(confine.interconnect_paths() if network else [])]
    devices += [SHARED_MEMORY] if gpu and network else []
    try:
        view = view_of(readable, writable, devices, network=network)
    except FileNotFoundError as error:
        raise SandboxError(str(error)) from error
    return Plan(
        rung=rung,
        view=view,
        home=view.writable[0],
        timeout_s=timeout_s,
        memory_bytes=int(memory_gb * 2**30),
        threads=threads,
        gpu=gpu,
        network=network,
        processes=processes,
        file_bytes=int(file_gb * 2**30),
        disk_bytes=int((4 * file_gb if disk_gb is None else disk_gb) * 2**30),
        files=files,
    )


def choose_rung(rung: str) -> Rung:
    """The first rung that works here for "auto", else `rung` itself once it is known to work.

    Raises:
        SandboxError: unknown name, or it does not work here (the message says why); for "auto", no rung works but
            "limits", which has to be asked for by name.
    """
    if rung == "auto":
        reasons = {}
        for name in RUNGS[:-1]:
            reasons[name] = probe(name)
            if not reasons[name]:
                return name
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise SandboxError(
            f"no sandbox works on this machine ({listed}). Install bubblewrap, allow user namespaces, or use a kernel "
            "with Landlock (5.13 or later); or set gate.sandbox=limits, with which a design's code can read and "
            "change whatever your user can"
        )
    if rung not in RUNGS:
        raise SandboxError(f"sandbox rung {rung!r}: expected auto or one of {list(RUNGS)}")
    reason = probe(rung)
    if reason:
        raise SandboxError(f"sandbox rung {rung!r} does not work on this machine: {reason}; set gate.sandbox=auto")
    return rung


@functools.cache
def probe(rung: str) -> str:
    """Tries a rung once per process, in a child; "" if it holds what it claims, else the reason.

    Raises:
        SandboxError: this is not Linux.
    """
    if sys.platform != "linux":
        raise SandboxError(f"the sandbox needs Linux, this is {sys.platform}")
    if rung == "limits":
        return ""
    claims = containment(rung)
    folder = Path(tempfile.mkdtemp(prefix="asiarch-probe-"))
    try:
        attempts = prepare(folder, os.getpid())
        plan = _plan(
            rung=rung,
            timeout_s=20.0,
            memory_gb=1.0,
            writable=[folder / "inside"],
            processes=8,
            file_gb=1.0,
            files=100,
        )
        outcome = _run(lambda: succeeded(attempts, claims), plan)
    except SandboxError as error:
        return str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not outcome.ok:
        return outcome.error
    return f"the probe could do what it must not: {', '.join(outcome.result)}" if outcome.result else ""


def containment(rung: str, *, network: bool = False) -> frozenset[Threat]:
    """What a rung holds on this kernel.

    "files": no change outside the writable paths; "modes": nor of mode, owner, times and attributes; "reading": no
    content outside what the child needs can be read; "signals": no process outside can be signalled, traced or set;
    "processes": nothing survives the call; "tcp", "network": no TCP, no network at all (neither with `network`);
    "unix sockets": no service of the machine is reached through a local socket. Time and memory are held by every
    rung. "limits" holds no more than these: its filter of system calls stops the direct ways, but who can write to
    the user's files, and through /proc to the user's processes, finds others.
    """
    held: set[Threat] = {"time", "memory"}
    filtered, abi = seccomp.available(), landlock.landlock_abi()
    if rung in _OWN:
        held |= {"files", "modes", "reading", "signals", "processes", "tcp", "network", "unix sockets"}
    elif rung == "landlock" and abi:
        held |= {"reading"}
        held |= {"files", "modes", "signals", "processes", "tcp", "network"} if filtered else set()
        held |= {"unix sockets"} if filtered and not network else set()
        held |= {"files"} if abi >= landlock.ABI_TRUNCATE else set()
        held |= {"tcp"} if abi >= landlock.ABI_TCP else set()
    return frozenset(held - {"tcp", "network"} if network else held)


def _run(function: Callable[[], Any], plan: Plan) -> Outcome:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise SandboxError("CUDA is initialised in the calling process, whose children cannot use it; call earlier")
    started = time.monotonic()
    census = Census(plan)
    pipes = Pipes.open()
    caller = os.getpid()
    guard = fork()
    if guard == 0:
        supervise(function, plan, pipes, caller)  # never returns
    pipes.close_writers()
    watch = Watch(guard, pipes, plan, census, started)
    try:
        watch.run()
    finally:
        watch.end()
        pipes.close_readers()
    if watch.setup_error:
        raise SandboxError(watch.setup_error)
    return Outcome(
        result=watch.result,
        records=tuple(watch.records),
        attempts=tuple(watch.attempts),
        cause=watch.cause,
        error=watch.error,
        traceback=watch.traceback,
        seconds=time.monotonic() - started,
        rung=cast(Rung, plan.rung),
        output=watch.output.decode(errors="replace"),
        output_bytes=watch.output_bytes,
    )
