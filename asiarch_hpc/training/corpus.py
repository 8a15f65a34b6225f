"""The prepared corpus: one HDF5 file of token ids with document offsets, written once, memory-mapped when read.

Layout: `train_tokens`, `heldout_tokens` (uint16, or uint32 above 65,536 ids; contiguous), `train_offsets`,
`heldout_offsets` (int64, one more than documents), `heldout_text` (UTF-8 bytes) with `heldout_text_offsets`,
`tokenizer` and `source` (JSON as bytes). Every document begins with the end-of-text token.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from asiarch_hpc.config import DataConfig
from asiarch_hpc.errors import CorpusError, StoreError
from asiarch_hpc.records import Json
from asiarch_hpc.training import text_sources
from asiarch_hpc.training import tokenizer as tokenizers
from asiarch_hpc.training.documents import Documents
from asiarch_hpc.training.tokenizer import Tokenizer

_LAYOUT = 1
_MEGABYTE = 1 << 20
_DEFINING = (
    "source", "dataset", "subset", "split", "text_field", "vocab_size", "tokenizer_megabytes", "heldout_fraction",
    "max_megabytes", "document_kilobytes", "recall_fraction",
)  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """An opened corpus. The held-out part is read when it is first asked for: a process that is to start a design's
    code must not have it in memory by then."""

    path: Path
    key: str
    vocab: int
    tokenizer: Tokenizer
    train: Documents
    source: Json

    @functools.cached_property
    def heldout(self) -> Documents:
        with _reading(self.path) as file:
            return Documents([_mapped(self.path, file["heldout_tokens"])], file["heldout_offsets"][:])

    @functools.cached_property
    def heldout_texts(self) -> Sequence[str]:
        with _reading(self.path) as file:
            return _texts(file["heldout_text"][:].tobytes(), file["heldout_text_offsets"][:])

    @functools.cached_property
    def heldout_bytes(self) -> Sequence[int]:
        """UTF-8 bytes of each held-out text."""
        return [len(text.encode()) for text in self.heldout_texts]


def prepare(config: DataConfig, *, root: Path, synthetic: Callable[[int], Iterable[str]]) -> Path:
    """Writes the corpus of a configuration to `root/<key>.h5` unless it is there; returns the path.

    The key hashes everything that defines the content. Any number of processes may do this at once: each writes
    a file of its own and renames it, and the contents are equal.

    Args:
        config: source, tokenizer and sizes.
        root: folder of the corpora.
        synthetic: texts of recall documents for a seed; mixed into the training part until they make up
            `config.recall_fraction` of its tokens. Seeds 0, 1, 2 … are drawn as far as needed.

    Raises:
        CorpusError: source or tokenizer are unusable, or nothing is left to train on or to hold out.
        StoreError: the file cannot be written.
    """
    _check_numbers(config)
    source = text_sources.describe(config)
    key = _key(config, source, synthetic)
    path = root / f"{key}.h5"
    if path.exists():
        try:
            open_corpus(path)
            return path
        except CorpusError:
            os.replace(path, path.with_suffix(".damaged"))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{key}.", dir=root) as scratch:
            built = _build(config, key, source, synthetic, Path(scratch))
            with built.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(built, path)
    except OSError as error:
        raise StoreError(f"{path}: the corpus cannot be written: {error}; free space or change data.cache") from error
    return path


def open_corpus(path: Path) -> Corpus:
    """Opens a prepared corpus; ids are memory-mapped.

    Raises:
        CorpusError: missing, damaged, or written in another layout.
    """
    with _reading(path) as file:
        layout = int(file.attrs["layout"])
        if layout != _LAYOUT:
            raise CorpusError(f"{path}: corpus layout {layout}, expected {_LAYOUT}; delete it and start again")
        for name in ("heldout_tokens", "heldout_offsets", "heldout_text", "heldout_text_offsets"):
            file[name]
        tokenizer = tokenizers.from_json(file["tokenizer"][:].tobytes().decode())
        return Corpus(
            path=path,
            key=str(file.attrs["key"]),
            vocab=tokenizer.vocab,
            tokenizer=tokenizer,
            train=Documents([_mapped(path, file["train_tokens"])], file["train_offsets"][:]),
            source=json.loads(file["source"][:].tobytes()),
        )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
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


def _check_numbers(config: DataConfig) -> None:
    for name, value, least, below in (
        ("heldout_fraction", config.heldout_fraction, 0.0, 1.0),
        ("recall_fraction", config.recall_fraction, 0.0, 1.0),
    ):
        if not least <= value < below:
            raise CorpusError(f"data.{name}={value}: a share from {least} to below {below} was expected")


def _key(config: DataConfig, source: Json, synthetic: Callable[[int], Iterable[str]]) -> str:
    # A sample stands for the generator of recall documents, whose code is not known here.
    sample = list(itertools.islice(synthetic(0), 8)) if config.recall_fraction > 0 else []
    defining = {
        "layout": _LAYOUT,
        "source": source,
        "tokenizer": tokenizers.identity(config.tokenizer),
        "settings": {name: getattr(config, name) for name in _DEFINING},
        "recall": sample,
    }
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()[:16]


def _split(config: DataConfig) -> Iterator[tuple[str, bool]]:
    """Yields (text, held out?) up to the configured size; equal texts always fall on the same side."""
    left = config.max_megabytes * _MEGABYTE if config.max_megabytes > 0 else float("inf")
    for text in text_sources.documents(config):
        raw = text.encode()
        if left <= 0:
            return
        left -= len(raw)
        share = int.from_bytes(hashlib.sha256(raw).digest()[:8]) / 2**64
        yield text, share < config.heldout_fraction


def _tokenizer(config: DataConfig) -> Tokenizer:
    if config.tokenizer == "bytes":
        return tokenizers.ByteTokenizer()
    if config.tokenizer != "bpe":
        return tokenizers.load(Path(config.tokenizer).expanduser())

    def sample() -> Iterator[str]:
        left = config.tokenizer_megabytes * _MEGABYTE
        for text, heldout in _split(config):
            if heldout:
                continue
            if left <= 0:
                return
            left -= len(text.encode())
            yield text

    return tokenizers.train_bpe(sample(), config.vocab_size)


def _build(
    config: DataConfig, key: str, source: Json, synthetic: Callable[[int], Iterable[str]], scratch: Path
) -> Path:
    """Tokenises everything into raw files of unknown length, then copies them into one HDF5 file."""
    tokenizer = _tokenizer(config)
    dtype = np.dtype(np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32)
    train = _TokenFile(scratch / "train", dtype)
    heldout = _TokenFile(scratch / "heldout", dtype)
    texts: list[bytes] = []
    recall = _recall_tokens(synthetic, tokenizer) if config.recall_fraction > 0 else iter(())
    recalled = 0
    for text, ids, is_heldout in _encoded(_split(config), tokenizer):
        if is_heldout:
            heldout.append(ids)
            texts.append(text.encode())
            continue
        train.append(ids)
        while recalled < config.recall_fraction * train.count:
            extra = next(recall)
            train.append(extra)
            recalled += len(extra)
    what = f"{config.source} {', '.join(config.paths) or config.dataset}".rstrip()
    if not train.count:
        raise CorpusError(f"{what}: no text to train on was found; expected at least one document")
    if not heldout.count:
        raise CorpusError(
            f"{what}: none of {len(train.offsets) - 1} documents fell into the held-out part "
            f"(data.heldout_fraction={config.heldout_fraction}); give more or smaller documents "
            "(data.document_kilobytes for text files), or raise the fraction"
        )
    path = scratch / "corpus.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update(layout=_LAYOUT, key=key)
        train.copy_to(file, "train")
        heldout.copy_to(file, "heldout")
        file["heldout_text"] = np.frombuffer(b"".join(texts), dtype=np.uint8)
        file["heldout_text_offsets"] = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        file["tokenizer"] = np.frombuffer(tokenizer.to_json().encode(), dtype=np.uint8)
        file["source"] = np.frombuffer(json.dumps(source).encode(), dtype=np.uint8)
    return path


def _encoded(split: Iterable[tuple[str, bool]], tokenizer: Tokenizer) -> Iterator[tuple[str, list[int], bool]]:
    """Adds each document's ids, in batches that amortise the tokenizer's call."""
    for batch in _batched(split, _MEGABYTE):
        for (text, heldout), ids in zip(batch, tokenizer.encode_batch([text for text, _ in batch]), strict=True):
            yield text, [tokenizer.eos, *ids], heldout


def _batched(split: Iterable[tuple[str, bool]], characters: int) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    size = 0
    for item in split:
        batch.append(item)
        size += len(item[0])
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _recall_tokens(synthetic: Callable[[int], Iterable[str]], tokenizer: Tokenizer) -> Iterator[list[int]]:
    for seed in itertools.count():
        empty = True
        for text in synthetic(seed):
            empty = False
            yield [tokenizer.eos, *tokenizer.encode(text)]
        if empty:
            raise CorpusError(f"the generator of recall documents gave none for seed {seed}; expected at least one")


class _TokenFile:
    """Token ids appended to a raw file, and where each document begins."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.dtype = dtype
        self.offsets = array("q", [0])
        self.path.touch()

    @property
    def count(self) -> int:
        return self.offsets[-1]

    def append(self, ids: Sequence[int]) -> None:
        with self.path.open("ab") as file:
            file.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.offsets.append(self.count + len(ids))

    def copy_to(self, file: h5py.File, name: str) -> None:
        """Writes `<name>_tokens` (contiguous, so that it can be memory-mapped) and `<name>_offsets`."""
        data = file.create_dataset(f"{name}_tokens", shape=(self.count,), dtype=self.dtype)
        raw = np.memmap(self.path, dtype=self.dtype, mode="r")
        for start in range(0, self.count, _MEGABYTE):
            data[start : start + _MEGABYTE] = raw[start : start + _MEGABYTE]
        file[f"{name}_offsets"] = np.asarray(self.offsets, dtype=np.int64)


def _mapped(path: Path, data: h5py.Dataset) -> NDArray[Any]:
    offset = data.id.get_offset()
    if offset is None:
        raise ValueError(f"{data.name} is not contiguous")
    return np.memmap(path, dtype=data.dtype, mode="r", offset=offset, shape=data.shape)


def _texts(raw: bytes, offsets: NDArray[np.int64]) -> list[str]:
    return [raw[a:b].decode() for a, b in itertools.pairwise(offsets.tolist())]
