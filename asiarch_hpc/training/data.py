"""Packs documents into rows without ever letting a target cross a document boundary (truth rule 5).

A document of n tokens gives n - 1 predictions. It is cut into pieces of `length` predictions: full pieces fill a
row each, and the last, shorter pieces of all documents are laid end to end and cut into rows again. So rows are
full, most rows hold one document only, and only the last row of an epoch is padded (masked, and not counted).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asiarch_hpc.errors import CorpusError
from asiarch_hpc.training.corpus import Documents

IGNORED = -100  # target of a position that is no prediction; cross_entropy's own default


@dataclass(frozen=True)
class Batch:
    """`inputs` and `targets` [batch, length] int64; targets are `IGNORED` where there is nothing to predict.

    `tokens` counts the real predictions.
    """

    inputs: Tensor
    targets: Tensor
    tokens: int


class Batches:
    """The training batches of one seed: batch number `step` is a function of the arguments alone.

    A resumed training therefore continues with the very batch that it would have seen. Each epoch has an order
    of its own; its plan takes 8 bytes a row and 16 a document.

    Args:
        documents: token ids with offsets.
        length: predictions a row.
        batch_size: rows a batch.
        seed: of the order.
        padding: any valid token id.

    Raises:
        CorpusError: no document has two tokens.
    """

    def __init__(self, documents: Documents, *, length: int, batch_size: int, seed: int, padding: int) -> None:
        self._tokens = documents.tokens
        self._begins = documents.offsets[:-1]
        predictions = np.maximum(np.diff(documents.offsets) - 1, 0)
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._padding = padding
        # full_rows[i]: full pieces in documents before i
        self._full_rows = np.concatenate([[0], np.cumsum(predictions // length)])
        self._tails = predictions % length
        self._tail_documents = np.flatnonzero(self._tails)
        tail_rows = -(-int(self._tails.sum()) // length)
        self.rows = int(self._full_rows[-1]) + tail_rows
        if not self.rows:
            raise CorpusError(f"{len(documents)} documents hold no pair of tokens; expected text to train on")
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0; it may span two epochs."""
        inputs = np.full((self._batch_size, self._length), self._padding, dtype=np.int64)
        targets = np.full((self._batch_size, self._length), IGNORED, dtype=np.int64)
        for place in range(self._batch_size):
            epoch, index = divmod(step * self._batch_size + place, self.rows)
            filled = 0
            for begin, count in self._pieces(epoch, index):
                piece = self._tokens[begin : begin + count + 1].astype(np.int64)
                inputs[place, filled : filled + count] = piece[:-1]
                targets[place, filled : filled + count] = piece[1:]
                filled += count
        tokens = int((targets != IGNORED).sum())
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), tokens)

    def _make_plan(self, epoch: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The epoch's order of rows, its order of tail pieces, and where each of these ends when laid out."""
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        tails = generator.permutation(self._tail_documents)
        return generator.permutation(self.rows), tails, np.cumsum(self._tails[tails])

    def _pieces(self, epoch: int, index: int) -> list[tuple[int, int]]:
        """What row `index` of an epoch is made of: (position of the first input, predictions)."""
        order, tails, ends = self._plan(epoch)
        row = int(order[index])
        full = int(self._full_rows[-1])
        if row < full:
            document = int(np.searchsorted(self._full_rows, row, side="right")) - 1
            skipped = row - int(self._full_rows[document])
            return [(int(self._begins[document]) + skipped * self._length, self._length)]
        at = (row - full) * self._length
        stop = min(at + self._length, int(ends[-1]))
        pieces: list[tuple[int, int]] = []
        place = int(np.searchsorted(ends, at, side="right"))
        while at < stop:
            document, end = int(tails[place]), int(ends[place])
            inside = at - (end - int(self._tails[document]))
            begin = int(
                self._begins[document] + (self._full_rows[document + 1] - self._full_rows[document]) * self._length
            )
            count = min(end, stop) - at
            pieces.append((begin + inside, count))
            at += count
            place += 1
        return pieces
