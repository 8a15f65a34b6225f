"""Counts what a family of processes uses, from outside: processes, memory, and what it has written."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection
from pathlib import Path

from asiarch_hpc.gate.sandbox import confine
from asiarch_hpc.gate.sandbox.plan import Plan

_DISK_PERIOD_S = 0.25
_DISK_SHARE = 20  # the files are counted again after at least this many times what counting took


class Census:
    """Compares a family with its plan's limits; what was there when it is made does not count.

    A family is all descendants of its guard; `helpers` among them do not count as processes. Memory that they have in
    common counts once for each, what they inherited unchanged not at all.
    """

    def __init__(self, plan: Plan) -> None:
        self.helpers: Collection[int] = ()
        self.seen: dict[int, int] = {}  # process id -> start time: ids are used again
        self._plan = plan
        self._inherited = confine.anonymous_bytes(os.getpid())
        self._folders = [path for path in plan.view.writable if path.is_dir()]
        self._written = _usage(self._folders, limit=None)
        self._next_count = 0.0

    def excess(self, guard: int) -> tuple[str, str] | None:
        """(cause, what was found and what is allowed) of the first limit that is exceeded, or None."""
        plan = self._plan
        self.seen = {process: confine.start_time(process) for process in confine.descendants(guard)}
        family = [process for process in self.seen if process not in self.helpers]
        if len(family) > plan.processes:
            return "processes", f"{len(family)} processes at once, at most {plan.processes} are allowed"
        used = sum(max(0, confine.anonymous_bytes(process) - self._inherited) for process in self.seen)
        if used > plan.memory_bytes:
            return "memory", f"{_gigabytes(used)} in use, at most {_gigabytes(plan.memory_bytes)} are allowed"
        return self.disk_excess() if time.monotonic() >= self._next_count else None

    def disk_excess(self) -> tuple[str, str] | None:
        """The part of `excess` that concerns files, counted now."""
        started = time.monotonic()
        before_bytes, before_files = self._written
        try:
            used, files = _usage(self._folders, limit=before_files + self._plan.files)
        except PermissionError as error:
            return "output", f"the folder {error.filename} was locked, its content cannot be counted"
        self._next_count = time.monotonic() + max(_DISK_PERIOD_S, _DISK_SHARE * (time.monotonic() - started))
        if used - before_bytes > self._plan.disk_bytes:
            written, allowed = _gigabytes(used - before_bytes), _gigabytes(self._plan.disk_bytes)
            return "output", f"{written} written to files, at most {allowed} are allowed"
        if files - before_files > self._plan.files:
            return "output", f"more than {self._plan.files} files written"
        return None


def _usage(folders: Collection[Path], *, limit: int | None) -> tuple[int, int]:
    """Bytes and entries beneath the folders; counting ends above `limit` entries.

    Raises:
        PermissionError: a folder cannot be listed.
    """
    used = entries = 0
    queue = [str(folder) for folder in folders]
    while queue:
        try:
            with os.scandir(queue.pop()) as listing:
                for entry in listing:
                    entries += 1
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    used += status.st_blocks * 512
                    if stat.S_ISDIR(status.st_mode):
                        queue.append(entry.path)
                    if limit is not None and entries > limit:
                        return used, entries
        except FileNotFoundError:
            continue
    return used, entries


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"
