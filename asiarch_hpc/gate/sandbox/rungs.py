"""The rungs: how a child is forked into its own surroundings, and how everything in them is ended.

A rung is used by a guard, a process that does nothing else: it makes the rung, forks the child, waits, and ends the
rung. `helpers` are the rung's own processes among the guard's descendants.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import NoReturn, Protocol

from asiarch_hpc.gate.sandbox import confine, namespaces
from asiarch_hpc.gate.sandbox.bubblewrap import Bubble
from asiarch_hpc.gate.sandbox.seccomp import Filter
from asiarch_hpc.gate.sandbox.view import View


class Rung(Protocol):
    helpers: tuple[int, ...]
    alone: bool  # process ids, message queues and mounts are the child's own

    def enter(self) -> bool:
        """Called in the child, first; whether its /proc shows its own processes alone."""
        ...

    def end(self) -> None:
        """Called in the guard: kills the child and all that it started, and returns when they are gone."""
        ...


def open_rung(name: str, view: View, *, network: bool, shared_memory: int, helpers: Filter) -> Rung:
    """Makes a rung around this process's later children.

    Args:
        shared_memory: bytes of a private /dev/shm, where the rung can give one; 0 gives none.
        helpers: system calls of the rung's own processes that a child can reach.

    Raises:
        OSError, SandboxError: the kernel or the program refuses.
    """
    confine.become_subreaper()
    if name == "bubblewrap":
        return _Bubblewrap(view, network=network, shared_memory=shared_memory, calls=helpers)
    if name == "namespaces":
        return _Namespaces(view, network=network, shared_memory=shared_memory)
    return _Shared()


class _Bubblewrap:
    alone = True

    def __init__(self, view: View, *, network: bool, shared_memory: int, calls: Filter) -> None:
        self._bubble = Bubble(view, network=network, shared_memory=shared_memory, calls=calls)
        self.helpers: tuple[int, ...] = self._bubble.helpers
        self._bubble.enter_processes()

    def enter(self) -> bool:
        self._bubble.enter()
        return True

    def end(self) -> None:
        self._bubble.end()
        _reap_all()


class _Namespaces:
    alone = True

    def __init__(self, view: View, *, network: bool, shared_memory: int) -> None:
        self._view, self._shared_memory = view, shared_memory
        namespaces.enter_namespaces(network=network)
        ended, self._lives = os.pipe()
        self._first = os.fork()
        if self._first == 0:
            _be_first(ended)
        os.close(ended)
        self.helpers: tuple[int, ...] = (self._first,)

    def enter(self) -> bool:
        os.close(self._lives)
        return namespaces.mount_view(self._view, shared_memory=self._shared_memory)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._first, signal.SIGKILL)
        _reap_all()


class _Shared:
    """No surroundings of its own: the child lives among the user's other processes."""

    alone = False
    helpers: tuple[int, ...] = ()

    def enter(self) -> bool:
        return False

    def end(self) -> None:
        """Stops, then kills what is left, until nothing is: a stopped process cannot fork ahead of the killing."""
        while family := confine.descendants(os.getpid()):
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for process in family:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, number)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass


def _be_first(ended: int) -> NoReturn:
    """Process 1 of the namespace: no signal from inside can end it, and its end ends all inside."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then reaps whatever is orphaned
        os.setsid()
        confine.keep_files({0: ended}, above=-1)
        confine.set_parent_death_signal(signal.SIGKILL)
        os.read(0, 1)  # waits for the guard's end, also for one that came before the request above
    finally:
        os._exit(0)


def _reap_all() -> None:
    """Waits for every child: the kernel ends a process namespace only when its members have been reaped."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
