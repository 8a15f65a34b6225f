"""Runs a candidate's blocks in a child process that gets token ids and gives hidden states, and nothing else.

Source: design.md, truth rule 1: the candidate's code never runs in the process that scores it. The final norm and
the head, which turn hidden states into probabilities, are the parent's: it took them from the weights that it hashed.
Ids and states pass through shared memory as raw numbers, and a socket carries fixed-size headers, so nothing that
the child sends is ever unpickled or evaluated. What it sends is untrusted: shapes, sizes and values are checked here.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import torch
from torch import Tensor

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.processes import fork, signal_name

Model = Callable[[Tensor], Tensor]

_REQUEST = struct.Struct("<qq")  # batch, length
_REPLY = struct.Struct("<BBB8q")  # status, type of the states, number of dimensions, dimensions; a message may follow
_OK, _FAILED = 0, 1
_TYPES = (torch.float32, torch.bfloat16)  # of states; others are sent as the first
_MESSAGE_BYTES = 4096
_POLL_MS = 200
_GRACE_S = 10.0  # for a child to end when it is asked to; a machine under load needs some
_PR_SET_PDEATHSIG = 1
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)


@contextlib.contextmanager
def serve_states(
    load: Callable[[], Model],
    *,
    dim: int,
    vocab: int,
    max_tokens: int,
    timeout_s: float,
    isolate: Callable[[], None] | None = None,
    threads: int = 1,
) -> Iterator[ServedStates]:
    """Forks a child that loads and runs a model's blocks; yields this process's end of it.

    Enter it before lm-eval is imported and before CUDA is used: a fork does not carry other threads over. The child
    is killed, with its process group, when the block ends or the parent dies.

    Args:
        load: called in the child; gives a function from ids `[batch, length]` int64 to hidden states
            `[batch, length, dim]`, any device and floating type.
        dim: last dimension of the states.
        vocab: ids lie below it.
        max_tokens: largest batch × length of one call; shared memory of `max_tokens × (4 dim + 8)` bytes.
        timeout_s: seconds for one call; the first call includes loading.
        isolate: called in the child before `load` (the sandbox). It may return in a child of that process, which
            then ends when SIGTERM reaches the process, and whose end ends it.
        threads: CPU threads of the child.

    Raises:
        EvaluationError: this process has used CUDA.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise EvaluationError(
            "this process has used CUDA already, and a forked child cannot; evaluate in a process that has not"
        )
    memory = mmap.mmap(-1, max_tokens * (8 + 4 * dim))
    ids = torch.frombuffer(memory, dtype=torch.int64, count=max_tokens)
    states = torch.frombuffer(memory, dtype=torch.uint8, count=4 * max_tokens * dim, offset=8 * max_tokens)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = fork()
    if pid == 0:
        _child(theirs, parent, load, isolate, threads, ids, states)
    theirs.close()
    try:
        yield ServedStates(pid, ours, ids, states, dim=dim, vocab=vocab, timeout_s=timeout_s)
    finally:
        _kill(pid)
        ours.close()


class ServedStates:
    """The parent's end: one request at a time, `submit` and then `collect`.

    Both raise EvaluationError when loading or running fails, the child dies or hangs, or its answer has a wrong shape
    or values that are not finite; from then on every call does.
    """

    def __init__(
        self,
        pid: int,
        channel: socket.socket,
        ids: Tensor,
        states: Tensor,
        *,
        dim: int,
        vocab: int,
        timeout_s: float,
    ) -> None:
        self._pid, self._channel, self._ids, self._values = pid, channel, ids, states
        self._dim, self._vocab, self._timeout_s = dim, vocab, timeout_s
        self._loaded = False
        self._asked: tuple[int, int] | None = None
        self._deadline = 0.0
        self._ended = ""

    def submit(self, ids: Tensor) -> None:
        """Starts the computation for ids `[batch, length]`; this process is free meanwhile."""
        batch, length = ids.shape
        assert self._asked is None, "the answer to the request before was not collected"
        assert 0 < ids.numel() <= self._ids.numel(), f"{batch} x {length} ids exceed {self._ids.numel()} tokens"
        assert not bool(((ids < 0) | (ids >= self._vocab)).any()), f"ids outside the vocabulary of {self._vocab}"
        if self._ended:
            raise EvaluationError(self._ended)
        self._asked, self._deadline = (batch, length), time.monotonic() + self._timeout_s
        self._ids[: ids.numel()] = ids.reshape(-1)
        try:
            early = self._channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) if self._loaded else b""
        except OSError:  # there is nothing
            early = b""
        if early:
            self._fail("the model's process answers what it was not asked")
        try:
            self._channel.send(_REQUEST.pack(batch, length), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._fail("the model's process does not read what it is asked")
        except OSError:  # a dead child shows when the answer is awaited
            pass

    def collect(self) -> Tensor:
        """The states of the ids submitted last: `[batch, length, dim]` in fp32 or bf16 on the CPU.

        The tensor is a view of shared memory that the next `submit` overwrites and that the child can still write
        to: copy what is needed, then check it.
        """
        assert self._asked is not None, "nothing was submitted"
        (batch, length), self._asked = self._asked, None
        if not self._loaded:
            self._receive(self._deadline, "loading the model")
            self._loaded = True
        kind, shape = self._receive(self._deadline, f"running the model on ids [{batch}, {length}]")
        expected = (batch, length, self._dim)
        if shape != expected:
            self._fail(f"the model gave hidden states of shape {list(shape)} for ids [{batch}, {length}], "
                       f"expected {list(expected)}")  # fmt: skip
        values = self._values.view(kind)[: batch * length * self._dim]
        # One pass: a sum of finite numbers is finite unless they are absurdly large, then each is looked at.
        if not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
            self._fail(f"the model gave hidden states that are not finite for ids [{batch}, {length}]")
        return values.view(expected)

    def _receive(self, deadline: float, doing: str) -> tuple[torch.dtype, tuple[int, ...]]:
        data = self._await(deadline, doing)
        if len(data) < _REPLY.size:
            self._fail(f"the model's process sent {len(data)} bytes while {doing}, expected {_REPLY.size}")
        status, kind, dims, *sizes = _REPLY.unpack_from(data)
        if status != _OK:
            text = data[_REPLY.size :].decode(errors="replace")
            self._fail(f"{doing} failed: {''.join(c if c.isprintable() else ' ' for c in text)}")
        if kind >= len(_TYPES):
            self._fail(f"the model's process named a type {kind} while {doing}, expected one below {len(_TYPES)}")
        return _TYPES[kind], tuple(sizes[: min(dims, 8)])

    def _await(self, deadline: float, doing: str) -> bytes:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        while True:
            # Asked before polling: an answer sent just before the end is still read. The socket alone would not
            # show the end, because a process that the child started may hold it open.
            ended = _exit_cause(self._pid)
            if poll.poll(0 if ended else _POLL_MS):
                with contextlib.suppress(OSError):
                    data = self._channel.recv(_REPLY.size + _MESSAGE_BYTES)
                    if data:
                        return data
                ended = ended or _exit_cause(self._pid, wait_s=1.0) or "it closed its channel"
            if ended:
                self._fail(f"the model's process ended while {doing}: {ended}")
            if not (time.monotonic() < deadline):
                self._fail(f"the model's process did not finish {doing} within {self._timeout_s:g} s; "
                           "it hangs, or evaluation.timeout_s is too short for it")  # fmt: skip

    def _fail(self, message: str) -> NoReturn:
        self._ended = message
        _end(self._pid)
        raise EvaluationError(message)


def _exit_cause(pid: int, wait_s: float = 0.0) -> str:
    """How the child ended, in words; empty while it runs. Leaves it unreaped, so that its id stays its own."""
    until = time.monotonic() + wait_s
    while True:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is not None and info.si_code == os.CLD_EXITED:
            return f"exit code {info.si_status}"
        if info is not None:
            number = info.si_status
            return f"killed by {signal_name(number)}" + (" (out of memory?)" if number == signal.SIGKILL else "")
        if not (time.monotonic() < until):
            return ""
        time.sleep(0.01)


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # the group exists once the child has called setsid
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _end(pid: int) -> None:
    """Asks the child to end, which an isolated one uses to end all that it started, then kills what is left."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    with contextlib.suppress(ChildProcessError):
        _exit_cause(pid, wait_s=_GRACE_S)
    _kill_group(pid)


def _kill(pid: int) -> None:
    _end(pid)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _child(
    channel: socket.socket,
    parent: int,
    load: Callable[[], Model],
    isolate: Callable[[], None] | None,
    threads: int,
    ids: Tensor,
    states: Tensor,
) -> NoReturn:
    """The child's whole life; it never returns into the caller's stack."""
    code = 1
    try:
        _detach(channel, parent)
        torch.set_grad_enabled(False)
        if isolate is not None:
            isolate()
        torch.set_num_threads(threads)  # starts them, and a process of several cannot be isolated
        model = load()
        channel.send(_REPLY.pack(_OK, 0, 0, *[0] * 8))
        while request := channel.recv(_REQUEST.size):
            _answer(channel, model, request, ids, states)
        code = 0
    except BaseException as error:
        with contextlib.suppress(BaseException):
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}, line {place.lineno})"
            channel.send(_REPLY.pack(_FAILED, 0, 0, *[0] * 8) + text.encode(errors="replace")[:_MESSAGE_BYTES])
    finally:
        os._exit(code)


def _answer(channel: socket.socket, model: Model, request: bytes, ids: Tensor, states: Tensor) -> None:
    batch, length = _REQUEST.unpack(request)
    out = model(ids[: batch * length].view(batch, length).clone())
    if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() > 8:
        found = f"{out.dtype} of {out.dim()} dimensions" if isinstance(out, Tensor) else type(out).__name__
        raise TypeError(f"the model gave {found}, expected floating-point hidden states [batch, length, dim]")
    kind = _TYPES.index(out.dtype) if out.dtype in _TYPES else 0
    out = out.to(_TYPES[kind])
    if out.nbytes <= states.nbytes:  # else the parent refuses the shape
        _copy(out, states.view(out.dtype)[: out.numel()].view(out.shape))
    channel.send(_REPLY.pack(_OK, kind, out.dim(), *out.shape, *[0] * (8 - out.dim())))


def _copy(out: Tensor, to: Tensor) -> None:
    """Into shared memory; from a GPU by way of page-locked memory, which it writes to many times as fast."""
    if out.is_cuda:
        locked = torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
        out = locked.copy_(out)
    to.copy_(out)


def _detach(channel: socket.socket, parent: int) -> None:
    """A session of its own, death with the parent, default signals, no inherited file but the standard ones."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    # Handlers of the parent (checkpoint, requeue) must not run here when a scheduler signals every process of a job.
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != channel.fileno():
            with contextlib.suppress(OSError):
                os.close(int(name))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    gc.freeze()  # what the parent holds is neither collected nor listed here
