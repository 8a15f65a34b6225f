"""Token ids of many documents, memory-mapped from one or more files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Documents:
    """Documents laid end to end over one or more shards; none crosses from one shard to the next.

    Args:
        shards: read-only memory maps [tokens of the shard], all of one dtype.
        offsets: [documents + 1]; document i holds the tokens `offsets[i]` to `offsets[i + 1]` of all shards together.
    """

    def __init__(self, shards: Sequence[NDArray[Any]], offsets: NDArray[np.int64]) -> None:
        # A view that is a plain array: slices of the memmap class cost several times as much.
        self._shards = [np.asarray(shard) for shard in shards]
        self._starts = np.cumsum([0, *map(len, shards)], dtype=np.int64)
        self.offsets = offsets
        assert self._shards
        assert self.tokens == int(offsets[-1])

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self._starts[-1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._shards[0].dtype

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        begin, end = self.offsets[:-1][index], self.offsets[1:][index]
        return self.read(int(begin), int(end - begin))

    def read(self, begin: int, count: int) -> NDArray[Any]:
        """The tokens from position `begin` on, [count]: a view, or a copy where they lie in several shards."""
        assert 0 <= begin <= begin + count <= self.tokens
        shard = int(np.searchsorted(self._starts, begin, side="right")) - 1
        parts = []
        while count > 0:
            start = begin - int(self._starts[shard])
            parts.append(self._shards[shard][start : start + count])
            begin, count, shard = begin + len(parts[-1]), count - len(parts[-1]), shard + 1
        return parts[0] if len(parts) == 1 else np.concatenate([self._shards[0][:0], *parts])

    def locate(self, begins: NDArray[np.int64]) -> list[tuple[NDArray[Any], int]]:
        """Shard and position within it for each position of all shards together."""
        numbers = np.searchsorted(self._starts, begins, side="right") - 1
        inside = begins - self._starts[numbers]
        return [(self._shards[n], i) for n, i in zip(numbers.tolist(), inside.tolist(), strict=True)]
