"""One HDF5 file of a corpus: token ids of documents with offsets, written once, memory-mapped when read.

Layout: `train_tokens`, `heldout_tokens` (uint16, or uint32 above 65,536 ids; contiguous), `train_offsets`,
`heldout_offsets` (int64, one more than documents), `heldout_text` (UTF-8 bytes) with `heldout_text_offsets`.
Attributes: `layout`, `key` and `tokenizer` of the corpus, `number` of the shard, and `state` (JSON): where the
next shard goes on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import uuid
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from asiarch_hpc.errors import CorpusError
from asiarch_hpc.records import Json

LAYOUT = 2
_PARTIAL = ".partial"
_DATA = (
    "train_tokens", "train_offsets", "heldout_tokens", "heldout_offsets", "heldout_text", "heldout_text_offsets",
)  # fmt: skip


class ShardId(NamedTuple):
    """Which shard of which corpus, by the corpus's key and the hash of its tokenizer."""

    key: str
    tokenizer: str
    number: int

    @property
    def name(self) -> str:
        return f"shard-{self.number:05}.h5"


class Part:
    """Documents laid end to end while they are collected."""

    def __init__(self) -> None:
        self.ids = bytearray()
        self.offsets = array("q", [0])

    @property
    def tokens(self) -> int:
        return self.offsets[-1]

    def append(self, ids: NDArray[Any]) -> None:
        self.ids += ids.data
        self.offsets.append(self.tokens + len(ids))


class Shard:
    """A shard in memory: the training part, the held-out part, and the held-out texts."""

    def __init__(self) -> None:
        self.train = Part()
        self.heldout = Part()
        self.texts: list[bytes] = []

    def write(self, folder: Path, identity: ShardId, dtype: np.dtype[Any], state: Json) -> None:
        """Puts the shard into its place; equal content gives equal bytes."""
        partial = folder / f".{identity.name}.{uuid.uuid4().hex}{_PARTIAL}"
        try:
            with h5py.File(partial, "w") as file:
                file.attrs.update(layout=LAYOUT, **identity._asdict(), state=json.dumps(state, sort_keys=True))
                for name, part in (("train", self.train), ("heldout", self.heldout)):
                    file[f"{name}_tokens"] = np.frombuffer(part.ids, dtype=dtype)
                    file[f"{name}_offsets"] = np.asarray(part.offsets, dtype=np.int64)
                file["heldout_text"] = np.frombuffer(b"".join(self.texts), dtype=np.uint8)
                file["heldout_text_offsets"] = np.cumsum([0, *map(len, self.texts)], dtype=np.int64)
            publish(partial, folder / identity.name)
        finally:
            partial.unlink(missing_ok=True)


def publish(partial: Path, path: Path) -> None:
    """Moves a finished file to its name, on disk before it is seen."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_text(text: str, path: Path) -> None:
    """Writes a small file at once or not at all."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PARTIAL}")
    try:
        partial.write_text(text, encoding="utf-8")
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Removes what killed preparations left behind."""
    for path in folder.glob(f".*{_PARTIAL}"):
        path.unlink(missing_ok=True)


def read_state(folder: Path, identity: ShardId) -> Json:
    """Checks that a shard is whole and belongs to the corpus; returns the state after it.

    Raises:
        CorpusError: it is damaged, or of another corpus.
    """
    path = folder / identity.name
    with opened(path) as file:
        found = {name: file.attrs[name] for name in ("layout", *identity._fields)}
        if found != {"layout": LAYOUT, **identity._asdict()}:
            raise CorpusError(f"{path}: found {found}, expected layout {LAYOUT} and {identity}")
        for name in _DATA:
            mapped(path, file[name])
        state: Json = json.loads(file.attrs["state"])
        return state


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Opens a shard for reading.

    Raises:
        CorpusError: here, or for what is not in it.
    """
    try:
        # No lock: readers on NFS must not fail, and nobody writes a finished file.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(
            f"{path}: not a readable corpus file ({error}); delete it, it is prepared again at the next start"
        ) from error


def mapped(path: Path, data: h5py.Dataset) -> NDArray[Any]:
    """A read-only memory map of a contiguous data set."""
    if not data.size:
        return np.empty(0, dtype=data.dtype)
    offset = data.id.get_offset()
    if offset is None:
        raise ValueError(f"{data.name} is not contiguous")
    return np.memmap(path, dtype=data.dtype, mode="r", offset=offset, shape=data.shape)


def texts(file: h5py.File) -> list[str]:
    """The held-out texts of an opened shard."""
    raw, offsets = file["heldout_text"][:].tobytes(), file["heldout_text_offsets"][:].tolist()
    return [raw[a:b].decode() for a, b in itertools.pairwise(offsets)]
