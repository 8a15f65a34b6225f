"""Threads and forks of a process that computes, and how processes ended."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator

_OPENMP = re.compile(r"/lib(gomp|iomp5|omp)\b[^/]*\.so")
_OMP_PAUSE_HARD = 2


def fork() -> int:
    """`os.fork`, 0 in the child, which begins with one thread of torch's and may set more.

    A fork carries no other threads over, but what the child has of OpenMP would wait for those that this process has
    computed with; so they are ended before, and start again when it computes next. The child's garbage collector leaves
    alone what it was born with: to look through torch's objects takes a tenth of a gate's time, and copies their pages.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    torch = sys.modules.get("torch")
    threads = None if torch is None else torch.get_num_threads()
    if torch is not None:
        torch.set_num_threads(1)
    _end_openmp_threads()
    pid = -1
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns when other threads exist; the child uses nothing that those could hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    finally:
        if torch is not None and pid != 0:
            torch.set_num_threads(threads)
    if pid == 0:
        gc.freeze()
    return pid


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Has torch compute with so many CPU threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def signal_name(number: int) -> str:
    """As SIGTERM; of a signal without a name, which most real-time ones are, `signal <number>`."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _end_openmp_threads() -> None:
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        for path in {line.split(maxsplit=5)[-1].strip() for line in maps if _OPENMP.search(line)}:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(path).omp_pause_resource_all(_OMP_PAUSE_HARD)
