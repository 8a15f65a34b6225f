"""The caller's side of an isolated call: reads what the child says, and ends it when it exceeds a limit."""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import time
from typing import Any

from asiarch_hpc.gate.sandbox import confine
from asiarch_hpc.gate.sandbox.census import Census
from asiarch_hpc.gate.sandbox.family import Pipes
from asiarch_hpc.gate.sandbox.plan import Plan

_ANSWER_LIMIT = 16 << 20  # bytes; a longer answer is not a design's report
_OUTPUT_KEPT = 64 << 10  # bytes of printed text that are kept, the last ones
_LAST_READS = 64  # from a pipe when all is over: more than a pipe holds
_POLL_S = 0.05
_GRACE_S = 10.0  # for the supervisor to end the family; a machine under load needs some


class Watch:
    """Follows one family of processes until it has ended, then knows the cause."""

    def __init__(self, supervisor: int, pipes: Pipes, plan: Plan, census: Census, started: float) -> None:
        self.result: Any = None
        self.records: list[Any] = []
        self.attempts: list[str] = []
        self.cause: str | None = None
        self.error = ""
        self.traceback = ""
        self.setup_error = ""
        self.output = b""
        self.output_bytes = 0
        self._supervisor = supervisor
        self._pipes = pipes
        self._timeout_s = plan.timeout_s or math.inf
        self._deadline = started + self._timeout_s
        self._census = census
        self._answer = bytearray()
        self._answer_bytes = 0
        self._status = b""
        self._exit_code: int | None = None
        self._answered = False
        self._over = False

    def run(self) -> None:
        """Returns when the family has ended, by itself or because it exceeded a limit."""
        with selectors.DefaultSelector() as selector:
            for reader, _ in (self._pipes.answer, self._pipes.output, self._pipes.status):
                os.set_blocking(reader, False)
                selector.register(reader, selectors.EVENT_READ)
            poll = time.monotonic()
            while self.cause is None:
                now = time.monotonic()
                if now >= self._deadline:
                    self._stop("timeout", f"no answer within {self._timeout_s:g} s")
                    break
                if now >= poll:
                    self._check_family()
                    poll = now + _POLL_S
                if self._read(selector, min(_POLL_S, self._deadline - now)):
                    break
        self.end()
        self._drain()
        if self.cause is None and (excess := self._census.disk_excess()):
            self._stop(*excess)
        self._conclude()

    def end(self) -> None:
        """Ends whatever is left of the family and reaps the supervisor; does nothing a second time."""
        if self._over:
            return
        self._over = True
        _signal(self._supervisor, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        while (code := _reap(self._supervisor)) is None:
            if time.monotonic() > deadline:
                _signal(self._supervisor, signal.SIGKILL)
            time.sleep(0.002)
        if code != 0:  # killed: what it would have ended is left to us
            for process, start in self._census.seen.items():
                if confine.start_time(process) == start:
                    _signal(process, signal.SIGKILL)

    def _read(self, selector: selectors.BaseSelector, timeout_s: float) -> bool:
        """Takes what has arrived; True once the supervisor has ended."""
        for key, _ in selector.select(max(0.0, timeout_s)):
            data = _read_available(key.fd)
            if data is None:
                continue
            if not data:
                if key.fd == self._pipes.status[0]:
                    return True
                selector.unregister(key.fd)
            else:
                self._take(key.fd, data)
        return False

    def _drain(self) -> None:
        for reader in (self._pipes.answer[0], self._pipes.output[0], self._pipes.status[0]):
            for _ in range(_LAST_READS):
                data = _read_available(reader)
                if not data:
                    break
                self._take(reader, data)

    def _take(self, reader: int, data: bytes) -> None:
        if reader == self._pipes.output[0]:
            self.output = (self.output + data)[-_OUTPUT_KEPT:]
            self.output_bytes += len(data)
        elif reader == self._pipes.status[0]:
            self._take_status(data)
        else:
            self._answer_bytes += len(data)
            if self._answer_bytes > _ANSWER_LIMIT:
                self._stop("output", f"the answer exceeds {_ANSWER_LIMIT >> 20} MiB")
                return
            self._answer += data
            if b"\n" in data:
                *lines, self._answer = self._answer.split(b"\n")
                for line in lines:
                    self._take_message(bytes(line))

    def _take_message(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            kind = next(key for key in ("record", "attempt", "result", "error") if key in message)
            if kind == "attempt":
                self.attempts.append(str(message["attempt"]))
                return
            if kind == "record":
                self.records.append(message["record"])
                return
            self._answered = True
            if kind == "result":
                self.result = message["result"]
            else:
                self.traceback = str(message["traceback"])
                self._stop("memory" if message["memory"] else "exception", str(message["error"]))
        except (ValueError, TypeError, KeyError, StopIteration, RecursionError):
            self._stop("protocol", f"the child wrote {line[:80]!r} in place of a JSON answer")

    def _check_family(self) -> None:
        if excess := self._census.excess(self._supervisor):
            self._stop(*excess)

    def _take_status(self, data: bytes) -> None:
        *lines, self._status = (self._status + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self._census.helpers = message.get("helpers", self._census.helpers)
            self._exit_code = message.get("ended", self._exit_code)
            self.setup_error = message.get("setup", self.setup_error)

    def _conclude(self) -> None:
        if self.cause is not None or self.setup_error:
            return
        code = self._exit_code
        if code is None:
            self._stop("killed by signal 9", "the process that supervises the child was killed")
        elif self._answered:
            return
        elif code == -signal.SIGXCPU:
            self._stop("timeout", f"more than {self._timeout_s:g} s of processor time")
        elif code < 0:
            self._stop(f"killed by signal {-code}", f"the process was killed by signal {-code}")
        else:
            self._stop("ended early", f"the process ended with exit code {code} before it had answered")

    def _stop(self, cause: str, error: str) -> None:
        if self.cause is None:
            self.cause, self.error = cause, error


def _read_available(reader: int) -> bytes | None:
    """Waiting bytes, b"" at the end, None when nothing is waiting."""
    try:
        return os.read(reader, 1 << 16)
    except BlockingIOError:
        return None


def _signal(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _reap(process: int) -> int | None:
    """Exit code of the process, minus its signal, or None while it lives."""
    try:
        ended, status = os.waitpid(process, os.WNOHANG)
    except ChildProcessError:
        return 0  # SIGCHLD is ignored in this process: the kernel reaped it
    return os.waitstatus_to_exitcode(status) if ended == process else None
