"""Writes checkpoints while the training goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from asiarch_hpc.training import checkpoint
from asiarch_hpc.training.checkpoint import State

_log = logging.getLogger(__name__)


class Saver:
    """Checkpoints of one training, written one after the other.

    `begin` copies the state into the host's memory and returns; a thread writes the copy. The state of 340M parameters
    takes 5 GB, which are copied in a second or two and written in many. Use it as a context manager, or call `close`.

    Until a checkpoint is written in full, a process that dies loses what was done since the one before it. So one is
    due the time early that writing it may take: twice as long as any before, and half of `seconds` at the start and at
    most. Where writing takes more than that half, more than `seconds` are lost, and the log says so.

    Args:
        path: of the checkpoint.
        seconds: of work that a process that dies may cost.
        clock: seconds, monotonic.
    """

    def __init__(self, path: Path, *, seconds: float, clock: Callable[[], float]) -> None:
        self._path = path
        self._seconds = seconds
        self._clock = clock
        self._done_at = clock()  # the work of the newest checkpoint
        self._expected = seconds / 2  # what writing one takes
        self._longest = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def due(self, step_seconds: float) -> bool:
        """Whether a checkpoint is to begin now; else it can wait for the next time that this is asked.

        Args:
            step_seconds: until then.
        """
        if self._thread is not None and self._thread.is_alive():
            return False  # waiting for it would only hold up the training
        return self._clock() - self._done_at + step_seconds + self._expected >= self._seconds

    def begin(self, state: State, *, done_at: float) -> None:
        """Has the state written; waits for the checkpoint before.

        Args:
            state: to be copied.
            done_at: when the last step in it was done.

        Raises:
            StoreError: the checkpoint before could not be written.
        """
        self.finish()
        self._done_at = done_at
        copy = _copied(state)
        self._thread = threading.Thread(target=self._write, args=(copy, done_at), name="checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Waits until all is written.

        Raises:
            StoreError: it could not be.
        """
        self.close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Waits for the thread, whatever became of its file; may be called again."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, state: State, done_at: float) -> None:
        try:
            checkpoint.save(state, self._path)
        except BaseException as error:  # raised again where the next checkpoint is asked for
            self._error = error
            return
        took = self._clock() - done_at
        self._longest = max(self._longest, took)
        self._expected = min(2 * self._longest, self._seconds / 2)
        if took > self._seconds / 2 > 0:
            _log.warning(
                "writing a checkpoint took %.1f s: a process that dies loses up to %.1f s of work, not at most "
                "scale.checkpoint_seconds=%g; use a faster disk or a larger setting",
                *(took, 2 * took, self._seconds),
            )


def _copied(value: Any) -> Any:
    """The same structure with its tensors' values of now, in the host's memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value
