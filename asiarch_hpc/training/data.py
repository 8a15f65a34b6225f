"""Packs documents into rows without ever letting a target cross a document boundary (truth rule 5).

A document of n tokens, of which the first is the separator, gives n - 1 predictions. It is cut into pieces of `length`
predictions; the input of a piece is the separator and then all of its tokens but the last. So every piece, and every
row, begins as a document does, each token is predicted once, and only the separator is repeated. Full pieces fill a
row each. Short documents and the last, shorter pieces share rows whole (packing.py); what room they leave at the end
of a row is padding (masked, and not counted).
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
from asiarch_hpc.training.packing import assign_rows

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


class _Pieces(NamedTuple):
    """Pieces: where in the rows laid end to end, document, first input's position, predictions, number in their row."""

    place: _Ints
    document: _Ints
    begin: _Ints
    size: _Ints
    number: _Ints


class Batches:
    """The training batches of one seed: batch number `step` is a function of the arguments alone.

    A resumed training therefore continues with the very batch that it would have seen, on any number of devices.
    Which pieces share a row depends on the seed; the order of the rows is each epoch's own. This object takes 24 bytes
    a document and 16 a row, an epoch's order 8 a row, and two of these are kept.

    Args:
        documents: token ids with offsets; each document begins with the separator.
        length: predictions a row.
        batch_size: rows of a batch, over all ranks.
        seed: of companions and orders.
        separator: the token before each document and each piece; padding is made of it too.
        window: pieces among which a row finds those that fill it, see `assign_rows`.

    Attributes:
        rows: of an epoch.
        predictions: of an epoch; what rows have more than these is padding.

    Raises:
        CorpusError: no document has two tokens.
    """

    def __init__(
        self, documents: Documents, *, length: int, batch_size: int, seed: int, separator: int, window: int
    ) -> None:
        self._documents = documents
        predictions = np.maximum(np.diff(documents.offsets) - 1, 0)
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._separator = separator
        # full_rows[i]: full pieces in documents before i
        self._full_rows: _Ints = np.concatenate([[0], np.cumsum(predictions // length)])
        self._tails: _Ints = predictions % length
        shuffled = self._generator(0).permutation(np.flatnonzero(self._tails))
        row = assign_rows(self._tails[shuffled], length=length, window=window)
        # A stable order leaves the pieces of a row shuffled, not the largest first.
        self._packed: _Ints = shuffled[np.argsort(row, kind="stable")]
        count = int(row.max(initial=-1)) + 1
        # packed[starts[i] : starts[i + 1]]: documents whose last pieces share row i of these, filled[i] its predictions
        self._starts: _Ints = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=count))])
        self._filled: _Ints = np.add.reduceat(self._tails[self._packed], self._starts[:-1]) if count else row
        self.rows = int(self._full_rows[-1]) + count
        self.predictions = int(predictions.sum())
        if not self.rows:
            raise CorpusError(f"{len(documents)} documents hold no pair of tokens; expected text to train on")
        self._order = lru_cache(maxsize=2)(self._make_order)

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step, counted from 0, or a rank's share of it; it may span epochs.

        Args:
            step: number of the batch.
            rank: which contiguous share of the rows is wanted.
            world: number of equal shares.

        Raises:
            ConfigError: the rows cannot be shared out evenly.
            CorpusError: a document does not begin with the separator.
        """
        assert 0 <= rank < world
        if self._batch_size % world:
            raise ConfigError(
                f"scale.batch_size={self._batch_size}: a multiple of the {world} processes that share a batch was "
                "expected"
            )
        share = self._batch_size // world
        first = step * self._batch_size
        inputs = np.full(share * self._length, self._separator, dtype=np.int64)
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
        self._check_beginnings(pieces, inputs)
        inputs[pieces.place] = self._separator
        shape = (share, self._length)
        return Batch(
            torch.from_numpy(inputs).view(shape),
            torch.from_numpy(targets).view(shape),
            int(pieces.size.sum()),
            torch.from_numpy(documents).view(shape),
            self._tokens(first, self._batch_size),
        )

    def _check_beginnings(self, pieces: _Pieces, inputs: _Ints) -> None:
        """Refuses documents whose first token would be lost to the separator."""
        first = inputs[pieces.place]
        wrong = (pieces.begin == self._documents.offsets[pieces.document]) & (first != self._separator)
        if wrong.any():
            raise CorpusError(
                f"document {pieces.document[wrong][0]} begins with token {first[wrong][0]}, expected the end-of-text "
                f"token {self._separator}; delete the corpus, it is prepared again at the next start"
            )

    def _tokens(self, first: int, count: int) -> int:
        """Predictions in `count` rows from row `first` on, counted over all epochs."""
        found = 0
        for epoch, _, indices in self._by_epoch(first, count):
            packed = self._order(epoch)[indices] - self._full_rows[-1]
            packed = packed[packed >= 0]
            found += (indices.stop - indices.start - len(packed)) * self._length + int(self._filled[packed].sum())
        return found

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

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self._seed, number]))

    def _make_order(self, epoch: int) -> _Ints:
        return self._generator(1 + epoch).permutation(self.rows)

    def _pieces(self, first: int, count: int) -> _Pieces:
        """What the rows of an interval are made of."""
        parts: list[_Pieces] = []
        for epoch, place, indices in self._by_epoch(first, count):
            rows = self._order(epoch)[indices]
            places = np.arange(place, place + len(rows))
            is_full = rows < self._full_rows[-1]
            parts.append(self._full_pieces(rows[is_full], places[is_full]))
            parts.append(self._packed_pieces(rows[~is_full] - self._full_rows[-1], places[~is_full]))
        return _Pieces(*map(np.concatenate, zip(*parts, strict=True)))

    def _full_pieces(self, rows: _Ints, places: _Ints) -> _Pieces:
        document = np.searchsorted(self._full_rows, rows, side="right") - 1
        begin = self._documents.offsets[document] + (rows - self._full_rows[document]) * self._length
        size = np.full_like(rows, self._length)
        return _Pieces(places * self._length, document, begin, size, np.zeros_like(rows))

    def _packed_pieces(self, rows: _Ints, places: _Ints) -> _Pieces:
        count = self._starts[rows + 1] - self._starts[rows]
        row = np.repeat(np.arange(len(rows)), count)
        left = np.cumsum(count) - count  # first piece of each row
        number = np.arange(len(row)) - left[row]
        document = self._packed[self._starts[rows][row] + number]
        size = self._tails[document]
        before = np.cumsum(size) - size
        full = (self._full_rows[document + 1] - self._full_rows[document]) * self._length
        begin = self._documents.offsets[document] + full
        return _Pieces(places[row] * self._length + before - before[left][row], document, begin, size, number)
