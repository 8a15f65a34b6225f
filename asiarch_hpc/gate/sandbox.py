"""Runs a function in a confined child process, so that the untrusted code it calls can harm nothing else.

The process that calls `run_isolated` forks a supervisor, which forks the child (inside new namespaces: through an
init process). The caller watches time, memory, process count and output; the supervisor alone ends what is left
of the family, and does so as well when the caller dies. Children answer in JSON lines: bytes from an untrusted
process are never unpickled.

Rungs, strongest first (`containment` lists what each holds):
  namespaces  own users, process ids, network, message queues; Landlock against writes
  landlock    Landlock against writes, and where the kernel has it against signals and TCP
  limits      time, memory and process limits alone: the child can write wherever its user can

The caller should be single-threaded, or at least call from a thread that lives on (the kernel ends the family with
the thread that forked it). For children with `gpu` it must not have touched CUDA: even `torch.cuda.is_available()`
leaves a CUDA, or with PYTORCH_NVML_BASED_CUDA_CHECK=1 an NVML, that does not work in forked children. After it has
used several OpenMP threads, children must keep `threads=1`. Open files of the caller are closed in the child.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from asiarch_hpc.errors import SandboxError
from asiarch_hpc.gate import confine
from asiarch_hpc.gate.family import Pipes, Plan, supervise
from asiarch_hpc.gate.watch import Watch

Rung = Literal["namespaces", "landlock", "limits"]
RUNGS: tuple[Rung, ...] = ("namespaces", "landlock", "limits")
Threat = Literal["time", "memory", "processes", "files", "signals", "tcp", "network"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one isolated call.

    `cause` is None when the function returned; else "timeout", "memory", "processes", "output", "exception",
    "ended early" (the process exited without an answer), "killed by signal N", or "protocol" (its answer is not
    what the sandbox writes). `error` is one line, `traceback` the tail of the child's traceback. `result` is the
    function's return value, `records` what it yielded, both from JSON. `output` is the tail of what was printed,
    `output_bytes` all of it.
    """

    result: Any = None
    records: tuple[Any, ...] = ()
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
    rung: str = "auto",
    threads: int = 1,
    gpu: bool = False,
    network: bool = False,
    processes: int = 64,
    file_gb: float = 16.0,
) -> Outcome:
    """Calls `function` in a confined child process and waits for it; leaves no process behind.

    Args:
        function: returns a JSON value. If it is a generator function, each value it yields is sent at once and
            survives the child's death. It inherits the caller's memory, not its open files or environment.
        timeout_s: wall-clock seconds.
        memory_gb: GiB that the child and its descendants may add to what they inherit.
        writable: existing folders that may be changed; the first is the child's TMPDIR and HOME.
        rung: "auto" takes the strongest that works here.
        threads: of torch and OpenMP in the child.
        gpu: lets the child use GPU devices; memory is then watched instead of limited by address space, which
            CUDA reserves without using.
        network: leaves the network reachable, for trainings over several nodes.
        processes: descendants alive at once.
        file_gb: GiB of one file.

    Raises:
        SandboxError: the rung does not work on this machine, CUDA is initialised in the caller, a folder of
            `writable` is missing.
    """
    chosen = choose_rung(rung)
    return _run(
        Plan(
            function=function,
            rung=chosen,
            timeout_s=timeout_s,
            memory_bytes=int(memory_gb * 2**30),
            writable=tuple(Path(path).resolve() for path in writable),
            threads=threads,
            gpu=gpu,
            network=network,
            processes=processes,
            file_bytes=int(file_gb * 2**30),
        )
    )


def choose_rung(rung: str) -> Rung:
    """The strongest rung that works here for "auto", else `rung` itself once it is known to work.

    Raises:
        SandboxError: unknown name, or it does not work here (the message says why).
    """
    if rung == "auto":
        return next(name for name in RUNGS if not probe(name))
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
    (folder / "inside").mkdir()
    caller = os.getpid()
    try:
        outcome = _run(
            Plan(
                function=lambda: _escapes(folder, caller, claims),
                rung=rung,
                timeout_s=20.0,
                memory_bytes=1 << 30,
                writable=((folder / "inside").resolve(),),
            )
        )
    except SandboxError as error:
        return str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not outcome.ok:
        return outcome.error
    return f"the probe could do what it must not: {', '.join(outcome.result)}" if outcome.result else ""


def containment(rung: str) -> frozenset[Threat]:
    """What a rung holds on this kernel.

    "files": no change outside the writable folders (but to mode, owner and times); "signals": no process outside
    can be signalled; "processes": nothing survives the call; "tcp", "network": no TCP, no network at all (but for
    Unix sockets that have a path). Time and memory are held by every rung.
    """
    held: set[Threat] = {"time", "memory"}
    if rung == "namespaces":
        held |= {"files", "signals", "processes", "tcp", "network"}
    elif rung == "landlock":
        abi = confine.landlock_abi()
        held |= {"files"}
        held |= {"signals", "processes"} if abi >= confine.ABI_SIGNALS else set()
        held |= {"tcp"} if abi >= confine.ABI_TCP else set()
    return frozenset(held)


def _escapes(folder: Path, caller: int, claims: frozenset[Threat]) -> list[str]:
    """Runs in the probe's child: what succeeded although the rung claims to hold it."""
    escaped = []
    (folder / "inside" / "allowed").write_text("x")
    if "files" in claims:
        try:
            (folder / "outside").write_text("x")
            escaped.append("write outside its folder")
        except OSError:
            pass
    if "signals" in claims:
        try:
            os.kill(caller, 0)
            escaped.append("signal its caller")
        except OSError:
            pass
    if "network" in claims and [name for _, name in socket.if_nameindex() if name != "lo"]:
        escaped.append("see network interfaces")
    return escaped


def _run(plan: Plan) -> Outcome:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise SandboxError("CUDA is initialised in the calling process, whose children cannot use it; call earlier")
    missing = [str(path) for path in plan.writable if not path.is_dir()]
    if missing or not plan.writable:
        raise SandboxError(f"writable folders {missing or '(none given)'} do not exist; create at least one first")
    started = time.monotonic()
    pipes = Pipes.open()
    sys.stdout.flush()
    sys.stderr.flush()
    caller = os.getpid()
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside threads; the child takes no lock that another thread may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        supervisor = os.fork()
    if supervisor == 0:
        supervise(plan, pipes, caller)  # never returns
    pipes.close_writers()
    watch = Watch(supervisor, pipes, plan, started)
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
        cause=watch.cause,
        error=watch.error,
        traceback=watch.traceback,
        seconds=time.monotonic() - started,
        rung=cast(Rung, plan.rung),
        output=watch.output.decode(errors="replace"),
        output_bytes=watch.output_bytes,
    )
