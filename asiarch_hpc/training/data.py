"""Packs documents into rows without ever letting a target cross a document boundary (truth rule 5).

A document of n tokens gives n - 1 predictions. It is cut into pieces of `length` predictions: full pieces fill a
row each, and the last, shorter pieces of all documents are laid end to end and cut into rows again. So rows are
full, and only the last row of an epoch is padded (masked, and not counted).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asiarch_hpc.errors import ConfigError, CorpusError
from asiarch_hpc.training.documents import Documents

IGNORED = -100  # target of a position that is no prediction; cross_entropy's own default
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents.

    `inputs` and `targets` [batch, length] int64; targets are `IGNORED` where there is nothing to predict.
    `documents` [batch, length] int32: which of the row's documents a position belongs to, counted from 0; -1 is
    padding. A design that is given it can keep its state from crossing documents.
    `tokens` counts the real predictions of these rows, `global_tokens` those of the whole batch, which differs where
    the rows are one rank's share.
    """

    inputs: Tensor
    targets: Tensor
    tokens: int
    documents: Tensor
    global_tokens: int

    def pinned(self) -> Batch:
        """The same batch in page-locked memory, from which a copy to a GPU is asynchronous."""
        return Batch(
            self.inputs.pin_memory(),
            self.targets.pin_memory(),
            self.tokens,
            self.documents.pin_memory(),
            self.global_tokens,
        )


class _Plan(NamedTuple):
    """An epoch: its order of rows, its order of documents' tails, and where each tail ends when all are laid out."""

    order: _Ints
    tails: _Ints
    ends: _Ints


class _Pieces(NamedTuple):
    """Runs of predictions: where in the rows laid end to end, first input's position, size, number in their row."""

    place: _Ints
    begin: _Ints
    size: _Ints
    number: _Ints


class Batches:
    """The training batches of one seed: batch number `step` is a function of the arguments alone.

    A resumed training therefore continues with the very batch that it would have seen, on any number of devices.
    Each epoch has an order of its own; its plan takes 8 bytes a row and 16 a document, this object 24 a document.

    Args:
        documents: token ids with offsets.
        length: predictions a row.
        batch_size: rows of a batch, over all ranks.
        seed: of the order.
        padding: any valid token id.

    Raises:
        CorpusError: no document has two tokens.
    """

    def __init__(self, documents: Documents, *, length: int, batch_size: int, seed: int, padding: int) -> None:
        self._documents = documents
        predictions = np.maximum(np.diff(documents.offsets) - 1, 0)
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._padding = padding
        # full_rows[i]: full pieces in documents before i
        self._full_rows: _Ints = np.concatenate([[0], np.cumsum(predictions // length)])
        self._tails: _Ints = predictions % length
        self._tail_documents: _Ints = np.flatnonzero(self._tails)
        self._tail_tokens = int(self._tails.sum())
        self.rows = int(self._full_rows[-1]) + -(-self._tail_tokens // length)
        if not self.rows:
            raise CorpusError(f"{len(documents)} documents hold no pair of tokens; expected text to train on")
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step, counted from 0, or a rank's share of it; it may span epochs.

        Args:
            step: number of the batch.
            rank: which contiguous share of the rows is wanted.
            world: number of equal shares.

        Raises:
            ConfigError: the rows cannot be shared out evenly.
        """
        assert 0 <= rank < world
        if self._batch_size % world:
            raise ConfigError(
                f"scale.batch_size={self._batch_size}: a multiple of the {world} processes that share a batch was "
                "expected"
            )
        share = self._batch_size // world
        first = step * self._batch_size
        inputs = np.full(share * self._length, self._padding, dtype=np.int64)
        targets = np.full(share * self._length, IGNORED, dtype=np.int64)
        documents = np.full(share * self._length, -1, dtype=np.int32)
        pieces = self._pieces(first + rank * share, share)
        places = self._documents.locate(pieces.begin)
        spans = zip(pieces.place.tolist(), pieces.size.tolist(), pieces.number.tolist(), strict=True)
        for (shard, begin), (place, count, number) in zip(places, spans, strict=True):
            stop = place + count
            text = shard[begin : begin + count + 1]
            inputs[place:stop] = text[:-1]
            targets[place:stop] = text[1:]
            documents[place:stop] = number
        shape = (share, self._length)
        return Batch(
            torch.from_numpy(inputs).view(shape),
            torch.from_numpy(targets).view(shape),
            int(pieces.size.sum()),
            torch.from_numpy(documents).view(shape),
            self._tokens(first, self._batch_size),
        )

    def _tokens(self, first: int, count: int) -> int:
        """Predictions in `count` rows from row `first` on, counted over all epochs: only an epoch's last may lack."""
        lacking = (self.rows - int(self._full_rows[-1])) * self._length - self._tail_tokens
        if not lacking:
            return count * self._length
        found = 0
        for epoch, _, indices in self._by_epoch(first, count):
            found += int((self._plan(epoch).order[indices] == self.rows - 1).sum())
        return count * self._length - found * lacking

    def _by_epoch(self, first: int, count: int) -> list[tuple[int, int, slice]]:
        """The rows of an interval as (epoch, place in the interval, indices in the epoch)."""
        parts = []
        place = 0
        while place < count:
            epoch, index = divmod(first + place, self.rows)
            size = min(count - place, self.rows - index)
            parts.append((epoch, place, slice(index, index + size)))
            place += size
        return parts

    def _make_plan(self, epoch: int) -> _Plan:
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        tails = generator.permutation(self._tail_documents)
        return _Plan(generator.permutation(self.rows), tails, np.cumsum(self._tails[tails]))

    def _pieces(self, first: int, count: int) -> _Pieces:
        """What the rows of an interval are made of."""
        parts: list[_Pieces] = []
        for epoch, place, indices in self._by_epoch(first, count):
            plan = self._plan(epoch)
            rows = plan.order[indices]
            places = np.arange(place, place + len(rows))
            is_full = rows < self._full_rows[-1]
            parts.append(self._full_pieces(rows[is_full], places[is_full]))
            parts.append(self._tail_pieces(rows[~is_full], places[~is_full], plan))
        return _Pieces(*map(np.concatenate, zip(*parts, strict=True)))

    def _full_pieces(self, rows: _Ints, places: _Ints) -> _Pieces:
        document = np.searchsorted(self._full_rows, rows, side="right") - 1
        begin = self._documents.offsets[document] + (rows - self._full_rows[document]) * self._length
        return _Pieces(places * self._length, begin, np.full_like(rows, self._length), np.zeros_like(rows))

    def _tail_pieces(self, rows: _Ints, places: _Ints, plan: _Plan) -> _Pieces:
        # [start, stop): the row in the layout of all tails; [left, right): the tails that it touches
        start = (rows - self._full_rows[-1]) * self._length
        stop = np.minimum(start + self._length, self._tail_tokens)
        left = np.searchsorted(plan.ends, start, side="right")
        touched = np.searchsorted(plan.ends, stop, side="left") + 1 - left
        row = np.repeat(np.arange(len(rows)), touched)
        number = np.arange(len(row)) - np.repeat(np.cumsum(touched) - touched, touched)
        tail = left[row] + number
        document = plan.tails[tail]
        tail_start = plan.ends[tail] - self._tails[document]
        at = np.maximum(start[row], tail_start)
        full = (self._full_rows[document + 1] - self._full_rows[document]) * self._length
        begin = self._documents.offsets[document] + full + at - tail_start
        size = np.minimum(stop[row], plan.ends[tail]) - at
        return _Pieces(places[row] * self._length + at - start[row], begin, size, number)
