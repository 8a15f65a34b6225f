"""Tokenises chunks of documents, in this process or in others; the result is the same."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asiarch_hpc.config import DataConfig
from asiarch_hpc.errors import CorpusError
from asiarch_hpc.training import tokenizer as tokenizers
from asiarch_hpc.training.tokenizer import Tokenizer

_MEGABYTE = 1 << 20
_AHEAD = 3  # chunks under way for each process, so that none waits while a shard is written


@dataclass(frozen=True)
class Chunk:
    """Tokenised documents, each beginning with the end-of-text token.

    `ids` [tokens] of all documents end to end; `ends` [documents] where each stops; `sizes` [documents] in UTF-8
    bytes; `heldout` [documents], the choice by hash: equal texts always fall on the same side.
    """

    ids: NDArray[Any]
    ends: list[int]
    sizes: list[int]
    heldout: list[bool]


def encode(texts: Sequence[str], tokenizer: Tokenizer, heldout_fraction: float) -> Chunk:
    """Tokenises documents and says which are held out."""
    raws = [text.encode() for text in texts]
    encoded = tokenizer.encode_batch(texts)
    flat: list[int] = []
    ends: list[int] = []
    for ids in encoded:
        flat.append(tokenizer.eos)
        flat += ids
        ends.append(len(flat))
    return Chunk(
        np.asarray(flat, dtype=token_type(tokenizer)),
        ends,
        [len(raw) for raw in raws],
        [is_heldout(raw, heldout_fraction) for raw in raws],
    )


def is_heldout(raw: bytes, fraction: float) -> bool:
    """Whether a text (UTF-8) belongs to the held-out part."""
    return int.from_bytes(hashlib.sha256(raw).digest()[:8]) / 2**64 < fraction


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest type that holds every id."""
    return np.dtype(np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32)


class Encoder:
    """Tokenises in this process until much text was given, then in as many processes as configured.

    A context manager; leaving it ends the processes.
    """

    def __init__(self, tokenizer: Tokenizer, config: DataConfig) -> None:
        self.tokenizer = tokenizer
        self._fraction = config.heldout_fraction
        self._processes = config.processes or len(os.sched_getaffinity(0))
        self._serial = config.serial_megabytes * _MEGABYTE
        self._given = 0
        self._pool: ProcessPoolExecutor | None = None

    @property
    def ahead(self) -> int:
        """Chunks of each source that should be under way."""
        return 1 if self._pool is None else _AHEAD * self._processes

    def submit(self, texts: Sequence[str]) -> Callable[[], Chunk]:
        """Begins to tokenise; the returned function waits for the result.

        Raises:
            CorpusError: here or from the returned function: a process died.
        """
        if self._pool is None and self._processes > 1 and self._given >= self._serial:
            self._pool = self._start()
        self._given += sum(map(len, texts))
        if self._pool is None:
            return functools.partial(encode, texts, self.tokenizer, self._fraction)
        try:
            future = self._pool.submit(_encode_here, texts)
        except BrokenProcessPool as error:
            raise self._died() from error
        return functools.partial(self._result, future)

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        # Started afresh, not forked: this process may hold threads, and CUDA.
        return ProcessPoolExecutor(
            self._processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self.tokenizer.to_json(), self._fraction),
        )

    def _result(self, future: Future[Chunk]) -> Chunk:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise self._died() from error

    def _died(self) -> CorpusError:
        return CorpusError(
            f"one of {self._processes} processes that tokenise died, perhaps for want of memory; the same command "
            "goes on where it stopped, with fewer of them as data.processes"
        )


_here: tuple[Tokenizer, float]  # set in a process of the pool


def _begin(tokenizer: str, fraction: float) -> None:
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _here = tokenizers.from_json(tokenizer), fraction


def _end_with_parent() -> None:
    # A process of a pool would wait for work for ever when its parent was killed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _encode_here(texts: Sequence[str]) -> Chunk:
    return encode(texts, *_here)
