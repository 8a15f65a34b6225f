"""Where documents come from: the standard library, files, or a Hugging Face data set, alone or as a mixture.

A source is read as a stream, always in the same order. Reading can go on at any document: see `Reader.position`.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import fields
from io import BufferedReader
from typing import Any, BinaryIO, Protocol

from asiarch_hpc.config import DataConfig, TextConfig
from asiarch_hpc.errors import CorpusError
from asiarch_hpc.records import Json
from asiarch_hpc.training.text_files import documents_of, files_of, passes, reading

SOURCES = ("python-stdlib", "text", "jsonl", "parquet", "huggingface")
_MEGABYTE = 1 << 20
_BLOCKS = 16  # into which the part of a large file that stands for it is spread


class Reader(Protocol):
    """A source being read. Iterating yields its texts that are not blank, as valid Unicode."""

    def __iter__(self) -> Generator[str]: ...

    def position(self) -> Json:
        """Where reading goes on after the text that was yielded last; `open_reader` starts there again."""
        ...

    def share(self) -> float | None:
        """How much of the source was read, 0 to 1; None where its size is not known."""
        ...


def sources_of(config: DataConfig) -> list[tuple[TextConfig, float]]:
    """The configured sources with their shares, which add up to 1.

    Raises:
        CorpusError: an unknown source, a weight that is not positive, or a mixture beside a source.
    """
    if not config.mixture:
        found: list[tuple[TextConfig, float]] = [(config, 1.0)]
    else:
        plain = TextConfig()
        also = [f.name for f in fields(TextConfig) if getattr(config, f.name) != getattr(plain, f.name)]
        if also:
            raise CorpusError(f"data.mixture beside data.{also[0]}: expected one of them; put it into the mixture")
        total = sum(part.weight for part in config.mixture)
        found = [(part, part.weight / total if total > 0 else 0.0) for part in config.mixture]
    for part, share in found:
        _check_source(part)
        if not share > 0:
            raise CorpusError(f"data.mixture: {name_of(part)}: a positive weight was expected")
    return found


def _check_source(config: TextConfig) -> None:
    if config.source not in SOURCES:
        raise CorpusError(f"data.source={config.source!r}: one of {', '.join(SOURCES)} was expected")


def name_of(config: TextConfig) -> str:
    """A source's name for messages."""
    where = config.dataset if config.source == "huggingface" else ", ".join(config.paths)
    return " ".join(filter(None, (config.source, where, config.subset)))


def open_reader(config: TextConfig, position: Json | None = None) -> Reader:
    """Opens a source at its beginning or at a position that its reader gave.

    Raises:
        CorpusError: here or while reading: missing path, wrong format; the message names the file and the line.
    """
    _check_source(config)
    return HubReader(config, position) if config.source == "huggingface" else FileReader(config, position)


def documents(config: TextConfig) -> Iterator[str]:
    """Yields the texts of one source from its beginning."""
    return iter(open_reader(config))


def describe(config: TextConfig, *, identity_megabytes: float) -> Json:
    """What identifies a source's content: file contents for files, name and revision for a hub data set.

    Times and absolute paths play no part, so a copied corpus has the same identity.

    Args:
        config: the source.
        identity_megabytes: as much of all files is looked at; of larger files, blocks spread over each, and its size.
    """
    settings: Json = {"text_field": config.text_field, "minimum": dict(sorted(config.minimum.items()))}
    if config.source == "huggingface":
        names = ("source", "dataset", "subset", "split", "revision")
        return settings | {name: getattr(config, name) for name in names}
    named = files_of(config)
    each = int(identity_megabytes * _MEGABYTE) // max(len(named), 1)
    sizes = [path.stat().st_size for path, _ in named]
    whole = sum(sizes) <= identity_megabytes * _MEGABYTE
    digest = hashlib.sha256()
    for (path, name), size in zip(named, sizes, strict=True):
        with reading(path), path.open("rb") as file:
            digest.update(name.encode() + b"\0" + _content(file, size, size if whole else each))
    found: Json = {"source": config.source, "files": len(named), "bytes": sum(sizes), "sha256": digest.hexdigest()}
    if config.source == "python-stdlib":
        found["python"] = ".".join(map(str, sys.version_info[:3]))
    if config.source == "text":
        settings["document_kilobytes"] = config.document_kilobytes
    return settings | found


def _content(file: BufferedReader, size: int, most: int) -> bytes:
    if size <= most:
        return hashlib.file_digest(file, "sha256").digest()
    digest = hashlib.sha256(size.to_bytes(8))
    block = most // _BLOCKS
    for i in range(_BLOCKS):
        file.seek((size - block) * i // (_BLOCKS - 1))
        digest.update(file.read(block))
    return digest.digest()


def _clean(texts: Iterable[str]) -> Generator[str]:
    # Half a surrogate pair, which JSON can spell, has no UTF-8 form.
    return (text.encode("utf-8", errors="replace").decode() for text in texts if text.strip())


class FileReader:
    """Reads the files of a source one after the other."""

    def __init__(self, config: TextConfig, position: Json | None) -> None:
        self._config = config
        self._files = files_of(config)
        self._sizes = [path.stat().st_size for path, _ in self._files]
        self._file: int = position["file"] if position else 0
        self._record: int = position["record"] if position else 0
        self._raw: BinaryIO | None = None

    def __iter__(self) -> Generator[str]:
        return _clean(self._texts())

    def _texts(self) -> Iterator[str]:
        while self._file < len(self._files):
            path, _ = self._files[self._file]
            with reading(path), path.open("rb") as self._raw:
                texts = documents_of(self._raw, path, self._config)
                for text in itertools.islice(texts, self._record, None):
                    self._record += 1
                    yield text
            self._file, self._record = self._file + 1, 0

    def position(self) -> Json:
        return {"file": self._file, "record": self._record}

    def share(self) -> float | None:
        inside = self._raw.tell() if self._raw is not None and not self._raw.closed else 0
        return min((sum(self._sizes[: self._file]) + inside) / max(sum(self._sizes), 1), 1.0)


class HubReader:
    """Reads a data set of the Hugging Face hub, or a folder that its library knows, as a stream."""

    def __init__(self, config: TextConfig, position: Json | None) -> None:
        if not config.dataset:
            raise CorpusError("data.source=huggingface needs data.dataset: the name of a data set")
        self._config = config
        self._name = config.dataset if config.subset is None else f"{config.dataset} ({config.subset})"
        self._records: int = position["records"] if position else 0
        self._stream = self._guarded(self._open)
        self._begun = position
        if position:
            self._stream.load_state_dict(position["stream"])

    def __iter__(self) -> Generator[str]:
        return _clean(self._texts())

    def position(self) -> Json:
        # Before its first record a stream tells its beginning, wherever it is to go on.
        return self._begun or {"records": self._records, "stream": self._stream.state_dict()}

    def share(self) -> float | None:
        splits = self._stream.info.splits or {}
        total = int(getattr(splits.get(self._config.split), "num_examples", 0) or 0)
        return min(self._records / total, 1.0) if total else None

    def _open(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise CorpusError("data.source=huggingface needs the package datasets (pip install datasets)") from error
        config = self._config
        stream = datasets.load_dataset(
            config.dataset, config.subset, split=config.split, revision=config.revision, streaming=True
        )
        wanted = list(dict.fromkeys([config.text_field, *config.minimum]))
        if stream.column_names is None:  # known only when a record was read
            return stream
        if missing := [name for name in wanted if name not in stream.column_names]:
            raise self._lacks(stream.column_names, missing[0])
        return stream.select_columns(wanted)

    def _texts(self) -> Iterator[str]:
        records = iter(self._stream)
        while (record := self._guarded(lambda: next(records, None))) is not None:
            self._records += 1
            self._begun = None
            text = record.get(self._config.text_field)
            if not isinstance(text, str):
                raise self._lacks(list(record), self._config.text_field)
            if passes(record, self._config, f"data set {self._name}"):
                yield text

    def _lacks(self, found: list[str], name: str) -> CorpusError:
        return CorpusError(
            f"data set {self._name}: found fields {sorted(found)}, expected {name!r} (data.text_field, data.minimum)"
        )

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except CorpusError:
            raise
        except Exception as error:  # the library raises its own, the hub's and the network's errors
            raise CorpusError(
                f"data set {self._name}, split {self._config.split!r}: cannot be loaded: {type(error).__name__}: "
                f"{error}. A machine without internet needs it in the Hugging Face cache, or as files with "
                "data.source=jsonl or parquet"
            ) from error
