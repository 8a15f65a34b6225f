"""Prepares training batches in a thread, so that no step waits for its data."""

from __future__ import annotations

import queue
import threading
from types import TracebackType

from asiarch_hpc.training.data import Batch, Batches


class Prefetcher:
    """Gives the very batches of `Batches`, each made while earlier ones are trained on.

    Use it as a context manager, or call `close`: the thread ends then, also in the middle of an epoch.

    Args:
        batches: where they come from; nobody else may use it meanwhile.
        first: step of the first batch.
        stop: step after the last one.
        depth: batches that may wait; memory grows with it.
        rank: share of each batch, see `Batches.batch`.
        world: number of shares.
        pin: puts batches into page-locked memory; needs CUDA.
    """

    def __init__(
        self, batches: Batches, *, first: int, stop: int, depth: int, rank: int = 0, world: int = 1, pin: bool = False
    ) -> None:
        self._batches = batches
        self._next = first
        self._stop = stop
        self._rank = rank
        self._world = world
        self._pin = pin
        self._ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._free = threading.Semaphore(depth)
        self._closing = False
        self._thread = threading.Thread(target=self._prepare, args=(first,), name="prefetch", daemon=True)
        self._thread.start()

    def batch(self, step: int) -> Batch:
        """The batch of the next step; steps are asked for in order, each once.

        Raises:
            BaseException: what preparing this batch raised.
        """
        assert not self._closing
        assert step == self._next < self._stop, f"step {step} after {self._next - 1}, up to {self._stop}"
        found = self._ready.get()
        if isinstance(found, BaseException):
            self._ready.put(found)  # whoever asks again gets the same answer, and does not wait for ever
            raise found
        self._next += 1
        self._free.release()
        return found

    def close(self) -> None:
        """Ends the thread and waits for it; may be called again."""
        self._closing = True
        self._free.release()
        self._thread.join()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, first: int) -> None:
        try:
            for step in range(first, self._stop):
                self._free.acquire()
                if self._closing:
                    return
                batch = self._batches.batch(step, rank=self._rank, world=self._world)
                self._ready.put(batch.pinned() if self._pin else batch)
        except BaseException as error:  # raised again where the batch is asked for
            self._ready.put(error)
