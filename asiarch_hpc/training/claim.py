"""One process at a time makes a corpus, where several are started at once; the others wait for it.

This saves work and nothing else: whoever makes a corpus makes the same one, so that a claim which is taken over too
early, or which a file system shows too late, does no harm.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOOK_S = 0.1  # between two looks at another's claim
_BEAT_S = 1.0  # between two signs of life


@contextmanager
def claimed(
    path: Path, *, stale_seconds: float, finished: Callable[[], bool], on_wait: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Waits until nobody else holds the claim, or the work is finished; yields what gives a sign of life.

    Args:
        path: the file that is the claim; its folder exists.
        stale_seconds: without a sign of life after which a claim is taken over; at once where its process is gone.
        finished: whether there is nothing left to claim.
        on_wait: told the host and process that is waited for.
    """
    mine = _create(path)
    while not mine and not finished():
        on_wait(_holder(path) or "another process")
        _wait(path, stale_seconds, finished)
        mine = _create(path)
    beaten = time.monotonic()

    def beat() -> None:
        nonlocal beaten
        if time.monotonic() - beaten >= _BEAT_S:
            beaten = time.monotonic()
            with suppress(OSError):  # taken over
                os.utime(path)

    try:
        yield beat
    finally:
        if mine and _holder(path) == _me():
            path.unlink(missing_ok=True)


def _me() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _create(path: Path) -> bool:
    try:
        with path.open("x") as file:
            file.write(_me())
    except FileExistsError:
        return False
    return True


def _holder(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _wait(path: Path, stale_seconds: float, finished: Callable[[], bool]) -> None:
    """Until the claim is given back, or is stale and removed; the clock is this machine's own."""
    sign, seen = None, time.monotonic()
    while (holder := _holder(path)) is not None and not finished():
        with suppress(FileNotFoundError):
            if (found := path.stat().st_mtime_ns) != sign:
                sign, seen = found, time.monotonic()
        host, _, process = holder.partition(" ")
        gone = host == socket.gethostname() and not Path(f"/proc/{process}").exists()
        if gone or time.monotonic() - seen > stale_seconds:
            path.unlink(missing_ok=True)
            return
        time.sleep(_LOOK_S)
