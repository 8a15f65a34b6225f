"""The controller's append-only event log: one JSON object a line, each fsynced before the next step is taken.

The recipe is the one known to work on NFS and Lustre: a single writer (the lease sees to that), whole lines, no
locks. A crash can only tear the last line, and a torn line was never acted upon, so it is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asiarch_hpc.errors import RecordError
from asiarch_hpc.store.files import store_error

Event = dict[str, Any]


class Journal:
    """Appends events to one file. Reading it needs no instance: `read_events`."""

    def __init__(self, path: Path) -> None:
        """Takes the log over for appending, after cutting off a torn last line.

        Raises:
            StoreError: the file cannot be written.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                end = _end_of_whole_lines(path)
                if end != file.tell():
                    file.truncate(end)
        except OSError as error:
            raise store_error(error, path) from error

    def append(self, *events: Event) -> None:
        """Writes events in one go and syncs them; on failure the file is as before.

        Raises:
            StoreError: disk full or unwritable.
        """
        data = b"".join(json.dumps(event, allow_nan=False, separators=(",", ":")).encode() + b"\n" for event in events)
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            end = os.fstat(file).st_size
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
                os.fsync(file)
            except OSError:
                os.ftruncate(file, end)
                raise
            finally:
                os.close(file)
        except OSError as error:
            raise store_error(error, self._path) from error


def _end_of_whole_lines(path: Path) -> int:
    """Length of the file up to its last line end."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position > 0:
            step = min(4096, position)
            file.seek(position - step)
            found = file.read(step).rfind(b"\n")
            if found >= 0:
                return position - step + found + 1
            position -= step
    return 0


def read_events(path: Path) -> Iterator[Event]:
    """The events in order; a torn last line is left out.

    Raises:
        RecordError: a damaged line before the last one (the tree still holds everything: rebuild).
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                event = json.loads(line)
            except ValueError as error:
                raise RecordError(
                    f"{path}, line {number}: not valid JSON ({error}); expected one event a line"
                ) from None
            if not isinstance(event, dict) or "event" not in event:
                raise RecordError(
                    f"{path}, line {number}: found {line[:60]!r}, expected an object with the key 'event'"
                )
            yield event
