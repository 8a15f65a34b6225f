"""The processes of one isolated call: supervisor, init of the process namespace, and the child itself.

Everything here runs after a fork and ends with `os._exit`: nothing of the caller's own clean-up may run twice.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import GeneratorType
from typing import Any, NoReturn

from asiarch_hpc.gate import confine

_CHANNEL = 3  # the child's descriptor for its answer
_TRACEBACK_CHARS = 4000
_REFUSALS = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc")
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHASHSEED")
_GPU_VARIABLES = ("CUDA_", "NVIDIA_", "NCCL_", "ROCR_", "HIP_")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One isolated call: what to run, where, and within which limits."""

    function: Callable[[], Any]
    rung: str
    timeout_s: float
    memory_bytes: int
    writable: tuple[Path, ...]
    threads: int = 1
    gpu: bool = False
    network: bool = False
    processes: int = 64
    file_bytes: int = 1 << 30


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


def supervise(plan: Plan, pipes: Pipes, caller: int) -> NoReturn:
    """The supervisor's life: start the child, report its end, leave nothing of its family.

    It answers SIGTERM, from the caller or from the kernel when the caller dies, by ending the family at once.
    """
    try:
        confine.reset_signals()
        os.setsid()
        signal.signal(signal.SIGTERM, _raise_ended)
        _end_with(caller)
        if plan.rung == "namespaces":
            _supervise_namespaces(plan, pipes, caller)
        else:
            _supervise_here(plan, pipes)
    except _Ended:
        pass
    except BaseException as error:
        _tell(pipes.status[1], {"setup": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


def _supervise_namespaces(plan: Plan, pipes: Pipes, caller: int) -> None:
    confine.enter_namespaces(network=plan.network)
    _end_with(caller)  # once more: new credentials cleared the request
    init = os.fork()
    if init == 0:
        _be_init(plan, pipes)
    try:
        os.waitpid(init, 0)
    finally:  # the end of init ends every process of its namespace, and is complete only after them
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end(init)


def _be_init(plan: Plan, pipes: Pipes) -> NoReturn:
    """Process 1 of the namespace: no signal from inside can end it, and its end ends all inside."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        confine.set_parent_death_signal(signal.SIGKILL)
        os.setsid()
        confine.mount_own_proc()
        child = os.fork()
        if child == 0:
            _be_child(plan, pipes)
        _tell(pipes.status[1], {"ended": _wait_for(child)})
    except BaseException as error:
        _tell(pipes.status[1], {"setup": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


def _supervise_here(plan: Plan, pipes: Pipes) -> None:
    confine.become_subreaper()
    try:
        child = os.fork()
        if child == 0:
            _be_child(plan, pipes)
        _tell(pipes.status[1], {"ended": _wait_for(child)})
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_descendants()


def _be_child(plan: Plan, pipes: Pipes) -> NoReturn:
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _confine_self(plan, pipes)
    except BaseException as error:
        _tell(pipes.status[1], {"setup": f"{type(error).__name__}: {error}"})
        os._exit(1)
    _keep_descriptors(plan, pipes)
    try:
        result = plan.function()
        if isinstance(result, GeneratorType):
            result = _stream(result)
        _tell(_CHANNEL, {"result": result})
    except BaseException as error:  # SystemExit and KeyboardInterrupt of a design are its errors too
        _report(error)
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    os._exit(0)


def _confine_self(plan: Plan, pipes: Pipes) -> None:
    os.setsid()
    _redirect_streams(pipes)
    confine.replace_environment(_environment(plan))
    tempfile.tempdir = None  # it may name the caller's
    gc.freeze()  # collections need not touch, and so copy, the pages shared with the caller
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(plan.threads)
    cores = (os.cpu_count() or 1) if plan.gpu else plan.threads  # a device's driver has threads of its own
    confine.limit_resources(
        cpu_s=plan.timeout_s * max(1, cores),
        file_bytes=plan.file_bytes,
        address_bytes=None if plan.gpu else plan.memory_bytes,
    )
    if plan.rung != "limits":
        devices = confine.gpu_paths() if plan.gpu else []
        confine.restrict_writes([*plan.writable, Path(os.devnull), *devices], network=plan.network)
    confine.drop_capabilities()
    confine.set_parent_death_signal(signal.SIGKILL)


def _keep_descriptors(plan: Plan, pipes: Pipes) -> None:
    """Closes all but the channel: copies of the status pipe are the supervisors' alone, its end means theirs."""
    os.dup2(pipes.answer[1], _CHANNEL)
    kept = _CHANNEL + 1
    if plan.gpu:
        os.dup2(confine.hold_own_proc(), kept)
        kept += 1
    os.closerange(kept, os.sysconf("SC_OPEN_MAX"))


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


def _environment(plan: Plan) -> dict[str, str]:
    folder, threads = str(plan.writable[0]), str(plan.threads)
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    if plan.gpu:
        kept |= {name: value for name, value in os.environ.items() if name.startswith(_GPU_VARIABLES)}
    else:
        # torch then finds no GPU by these variables alone; the driver would fail to start within the limits, and warn.
        kept |= {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    return kept | {
        "HOME": folder,
        "TMPDIR": folder,
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


def _end(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it may have ended and been reaped
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _end_descendants() -> None:
    """Stops, then kills what is left, until nothing is: a stopped process cannot fork ahead of the killing."""
    while family := confine.descendants(os.getpid()):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _end_with(caller: int) -> None:
    confine.set_parent_death_signal(signal.SIGTERM)
    if os.getppid() != caller:  # it died before the request
        raise _Ended


def _raise_ended(number: int, frame: Any) -> NoReturn:
    raise _Ended
