"""Writes checkpoints while the training goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from asiarch_hpc.training import checkpoint
from asiarch_hpc.training.checkpoint import State


class Saver:
    """Checkpoints of one training, written one after the other.

    `begin` copies the state into the host's memory and returns; a thread writes the copy. The state of 340M parameters
    takes 5 GB, which are copied in a second or two and written in many. Use it as a context manager, or call `close`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, state: State) -> None:
        """Has the state written; waits for the checkpoint before.

        Raises:
            StoreError: the checkpoint before could not be written.
        """
        self.finish()
        copy = _copied(state)
        self._thread = threading.Thread(target=self._write, args=(copy,), name="checkpoint")
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

    def _write(self, state: State) -> None:
        try:
            checkpoint.save(state, self._path)
        except BaseException as error:  # raised again where the next checkpoint is asked for
            self._error = error


def _copied(value: Any) -> Any:
    """The same structure with its tensors' values of now, in the host's memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value
