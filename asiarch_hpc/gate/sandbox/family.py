"""The processes of confined code: the guard, which makes and ends its surroundings, and the child itself.

Everything here runs after a fork and ends with `os._exit`: nothing of the caller's own clean-up may run twice.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import GeneratorType
from typing import Any, NoReturn

from asiarch_hpc.errors import SandboxError
from asiarch_hpc.gate.sandbox import confine, landlock, seccomp
from asiarch_hpc.gate.sandbox.attempts import report_attempts
from asiarch_hpc.gate.sandbox.census import Census
from asiarch_hpc.gate.sandbox.plan import Plan
from asiarch_hpc.gate.sandbox.rungs import Rung, open_rung
from asiarch_hpc.gate.sandbox.view import DEVICES, covers

_CHANNEL = 3  # the child's descriptor for its answer
_TRACEBACK_CHARS = 4000
_REFUSALS = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc")
_POLL_S = 0.1
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHASHSEED", "CC", "CXX")
_PROC_ENTRIES: tuple[str, ...] = ("self", "cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "vmstat")
_PROC_ENTRIES += ("devices", "driver", "filesystems", "sys")  # of the shared /proc: nothing of other processes
_GPU_VARIABLES = ("CUDA_", "NVIDIA_", "NCCL_", "ROCR_", "HIP_", "TORCH_NCCL_", "TORCH_SYMM_MEM_", "NVSHMEM_")
_NETWORK_VARIABLES = ("GLOO_", "FI_", "UCX_")


@dataclass(frozen=True, slots=True)
class Pipes:
    """(reader, writer) descriptors: the child's answer, what it prints, and the supervisor's word on its end."""

    answer: tuple[int, int]
    output: tuple[int, int]
    status: tuple[int, int]

    @classmethod
    def open(cls) -> Pipes:
        return cls(os.pipe(), os.pipe(), os.pipe())

    def close_writers(self) -> None:
        for _, writer in (self.answer, self.output, self.status):
            os.close(writer)

    def close_readers(self) -> None:
        for reader, _ in (self.answer, self.output, self.status):
            os.close(reader)


class _Ended(BaseException):
    """The caller asked the supervisor to end, or died."""


class _Asked:
    """The answer to SIGTERM: an exception, and remembered, since in a callback, as logging has one around fork, an
    exception is reported and lost."""

    def __init__(self) -> None:
        self._before = False

    def __call__(self, number: int, frame: Any) -> NoReturn:
        self._before = True
        raise _Ended

    def check(self) -> None:
        if self._before:
            raise _Ended


def supervise(function: Callable[[], Any], plan: Plan, pipes: Pipes, caller: int) -> NoReturn:
    """The guard's life in an isolated call: start the child, report its end, leave nothing of its family.

    It answers SIGTERM, from the caller or from the kernel when the caller dies, by ending the family at once.
    """
    asked = _Asked()
    try:
        rung = _prepare(plan, caller, asked)
        child = os.fork()
        if child == 0:
            _be_child(function, plan, pipes, rung)
        try:
            asked.check()
            _tell(pipes.status[1], {"helpers": rung.helpers})
            _tell(pipes.status[1], {"ended": _wait_for(child)})
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            rung.end()
    except _Ended:
        pass
    except BaseException as error:
        _tell(pipes.status[1], {"setup": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


def guard_myself(plan: Plan, caller: int) -> None:
    """Forks a confined child in which this function returns; the calling process becomes its guard.

    The guard ends as the child does, or when SIGTERM reaches it, and then leaves nothing of the child's family.

    Raises:
        SandboxError: in the guard, where the child and its family are gone by then: they exceeded a limit.
        OSError, SandboxError: the rung cannot be set up.
    """
    census, asked = Census(plan), _Asked()
    rung = _prepare(plan, caller, asked)
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _confine_self(plan, rung, guard)
        return
    code = 0
    try:
        census.helpers = rung.helpers
        while (ended := _ended(child)) is None:
            asked.check()
            if excess := census.excess(guard):
                raise SandboxError(f"{excess[0]}: {excess[1]}")
            time.sleep(_POLL_S)
        code = ended
    except _Ended:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        rung.end()
    _end_like(code)


def _prepare(plan: Plan, caller: int, asked: _Asked) -> Rung:
    """The guard's first part: end with the caller, and make the surroundings."""
    confine.reset_signals()
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setsid()
    signal.signal(signal.SIGTERM, asked)
    _end_with(caller)
    rung = open_rung(
        plan.rung,
        plan.view,
        network=plan.network,
        shared_memory=plan.memory_bytes if _has_shared_memory(plan) else 0,
        helpers=_calls(plan, alone=True),
    )
    _end_with(caller)  # once more: new credentials cleared the request
    return rung


def _be_child(function: Callable[[], Any], plan: Plan, pipes: Pipes, rung: Rung) -> NoReturn:
    guard = os.getppid()
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _redirect_streams(pipes)
        held = _confine_self(plan, rung, guard)
        confine.keep_files({_CHANNEL: pipes.answer[1], _CHANNEL + 1: held}, above=2)
    except BaseException as error:
        _tell(pipes.status[1], {"setup": f"{type(error).__name__}: {error}"})
        os._exit(1)
    try:
        report_attempts(lambda line: _tell(_CHANNEL, {"attempt": line}))
        result = function()
        if isinstance(result, GeneratorType):
            result = _stream(result)
        _tell(_CHANNEL, {"result": result})
    except BaseException as error:  # SystemExit and KeyboardInterrupt of a design are its errors too
        _report(error)
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    os._exit(0)


def _confine_self(plan: Plan, rung: Rung, guard: int) -> int:
    """All that the child gives up; a descriptor that must stay open while it lives.

    The order matters: mounts need capabilities, Landlock the paths, the filter of calls refuses all of it.
    """
    os.setsid()
    importlib.util.find_spec("asiarch_no_such_module")  # lists the folders of sys.path while that is allowed
    own_proc = rung.enter()
    held = confine.hold_own_proc()
    confine.replace_environment(_environment(plan))
    tempfile.tempdir = None  # it may name the caller's
    gc.freeze()  # collections need not touch, and so copy, the pages shared with the caller
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(plan.threads)
    cores = (os.cpu_count() or 1) if plan.gpu else plan.threads  # a device's driver has threads of its own
    confine.limit_resources(
        cpu_s=None if plan.timeout_s is None else plan.timeout_s * max(1, cores),
        file_bytes=plan.file_bytes,
        address_bytes=None if plan.gpu else plan.memory_bytes,
    )
    confine.set_parent_death_signal(signal.SIGKILL)
    if not rung.alone and os.getppid() != guard:  # it died before the request
        os._exit(1)
    _restrict(plan, alone=rung.alone, own_proc=own_proc)
    return held


def _redirect_streams(pipes: Pipes) -> None:
    silence = os.open(os.devnull, os.O_RDONLY)
    os.dup2(silence, 0)
    os.dup2(pipes.output[1], 1)
    os.dup2(pipes.output[1], 2)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0), encoding="utf-8")  # type: ignore[misc]
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        raw = io.FileIO(descriptor, "w", closefd=False)
        stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="replace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _restrict(plan: Plan, *, alone: bool, own_proc: bool) -> None:
    """Landlock where the rung has it or the kernel adds it, no capabilities, and the filter of system calls."""
    if plan.rung == "landlock" or (alone and landlock.landlock_abi()):
        proc = [Path("/proc")] if own_proc else [Path("/proc") / name for name in _PROC_ENTRIES]
        devices = [*(Path("/dev") / name for name in DEVICES), *plan.view.devices]
        devices += [confine.OWN_PROC] if plan.gpu else []  # CUDA names its threads there
        devices += [Path("/dev/shm")] if _has_shared_memory(plan) and alone else []
        landlock.restrict_files(
            readable=[*plan.view.readable, *proc],
            writable=plan.view.writable,
            devices=devices,
            listable=[Path("/")] if alone else [],
            network=plan.network,
            abstract_sockets=plan.gpu and plan.network,
        )
    confine.drop_capabilities()
    if seccomp.available():
        seccomp.restrict_calls(_calls(plan, alone=alone))


def _calls(plan: Plan, *, alone: bool) -> seccomp.Filter:
    """Local sockets reach services of the machine, unless nothing of the machine is in sight."""
    return seccomp.Filter(
        families=seccomp.NETWORK_FAMILIES if plan.network else (seccomp.AF_UNIX,) if plan.gpu else (),
        connect=plan.network or alone,
        alone=alone,
        memory_files=plan.gpu,
    )


def _has_shared_memory(plan: Plan) -> bool:
    """Whether the child gets a /dev/shm of its own; with `network` it has the machine's in view."""
    return plan.gpu and not plan.network


def _environment(plan: Plan) -> dict[str, str]:
    home, threads = str(plan.home), str(plan.threads)
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    if plan.gpu:
        kept |= {name: value for name, value in os.environ.items() if name.startswith(_GPU_VARIABLES)}
    else:
        # torch then finds no GPU by these variables alone; the driver would fail to start within the limits, and warn.
        kept |= {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    if plan.network:
        kept |= {name: value for name, value in os.environ.items() if name.startswith(_NETWORK_VARIABLES)}
    if plan.rung != "limits":
        folders = kept.get("PATH", os.defpath).split(":")
        kept["PATH"] = ":".join(folder for folder in folders if folder and covers(plan.view, Path(folder)))
    return kept | {
        "HOME": home,
        "TMPDIR": home,
        # Triton looks for its home when it is imported, which may have been before; torch's compiler likewise.
        "TRITON_HOME": home,
        "TRITON_CACHE_DIR": f"{home}/.triton/cache",
        "TORCHINDUCTOR_CACHE_DIR": f"{home}/.torchinductor",
        "USER": "design",
        "LOGNAME": "design",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
    }


def _stream(values: GeneratorType[Any, None, Any]) -> Any:
    while True:
        try:
            record = next(values)
        except StopIteration as end:
            return end.value
        _tell(_CHANNEL, {"record": record})


def _report(error: BaseException) -> None:
    memory = is_out_of_memory(error)
    if memory:
        confine.lift_address_limit()
    trace = "".join(traceback.format_exception(error))
    message = str(error).strip()
    _tell(
        _CHANNEL,
        {
            "error": f"{type(error).__name__}: {message}" if message else type(error).__name__,
            "memory": memory,
            "traceback": trace[-_TRACEBACK_CHARS:],
        },
    )


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it was raised from, says that an allocation was refused (Python's, the C
    library's or torch's)."""
    if error is None or isinstance(error, MemoryError):
        return error is not None
    text = str(error).lower()
    return (isinstance(error, (RuntimeError, OSError)) and any(phrase in text for phrase in _REFUSALS)) or (
        is_out_of_memory(error.__cause__)
    )


def _tell(descriptor: int, message: dict[str, Any]) -> None:
    line = json.dumps(message).encode() + b"\n"
    try:
        while line:
            line = line[os.write(descriptor, line) :]
    except OSError:
        os._exit(1)  # the channel is closed: by the design, or because the caller is gone


def _flush(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError):  # the design may have closed it
        stream.flush()


def _wait_for(child: int) -> int:
    """Reaps every child that ends until `child` does; its exit code, or minus its signal."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            return os.waitstatus_to_exitcode(status)


def _ended(child: int) -> int | None:
    """Reaps every child that has ended; the exit code of `child`, minus its signal, once it is among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == 0:
                break
            if ended == child:
                code = os.waitstatus_to_exitcode(status)
    return code


def _end_like(code: int) -> NoReturn:
    """Ends this process with another one's exit code, or by the signal that it was killed by."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def _end_with(caller: int) -> None:
    confine.set_parent_death_signal(signal.SIGTERM)
    if os.getppid() != caller:  # it died before the request
        raise _Ended
