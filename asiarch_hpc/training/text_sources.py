"""Where documents come from: the standard library, text, JSON lines, parquet, or a Hugging Face data set.

A source is read as a stream, always in the same order, and may be read again from its beginning.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import lzma
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from asiarch_hpc.config import DataConfig
from asiarch_hpc.errors import CorpusError
from asiarch_hpc.records import Json

SOURCES = ("python-stdlib", "text", "jsonl", "parquet", "huggingface")
_SUFFIXES = {
    "text": (".txt", ".md", ".rst"),
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "parquet": (".parquet",),
}
_PACKED = (".xz", ".gz")
# Installed packages, tests, and tables of numbers are neither prose nor code that a person wrote to be read.
_STDLIB_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "encodings", "__pycache__", "lib-dynload"}
)


def documents(config: DataConfig) -> Iterator[str]:
    """Yields the texts of the configured source in a fixed order, skipping blank ones.

    Raises:
        CorpusError: unknown source, missing path, wrong format; the message names the file and the line.
    """
    _check_source(config)
    if config.source == "python-stdlib":
        texts = _stdlib_documents(stdlib_folder())
    elif config.source == "huggingface":
        texts = _hub_documents(config)
    else:
        read = {"text": _text_documents, "jsonl": _jsonl_documents, "parquet": _parquet_documents}[config.source]
        texts = (text for path, _ in _files(config) for text in read(path, config))
    # Half a surrogate pair, which JSON can spell, has no UTF-8 form.
    return (text.encode("utf-8", errors="replace").decode() for text in texts if text.strip())


def describe(config: DataConfig) -> Json:
    """What identifies the source's content: file contents for files, the name for a hub data set.

    Times, sizes and absolute paths play no part, so a copied corpus has the same identity.
    """
    _check_source(config)
    if config.source == "huggingface":
        return {"source": config.source, "dataset": config.dataset, "subset": config.subset, "split": config.split}
    if config.source == "python-stdlib":
        named = [(path, path.relative_to(stdlib_folder()).as_posix()) for path in _stdlib_files(stdlib_folder())]
    else:
        named = _files(config)
    digest, size = hashlib.sha256(), 0
    for path, name in named:
        with _reading(path), path.open("rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
            size += file.tell()
    described: Json = {"source": config.source, "files": len(named), "bytes": size, "sha256": digest.hexdigest()}
    if config.source == "python-stdlib":
        described["python"] = ".".join(map(str, sys.version_info[:3]))
    return described


def stdlib_folder() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def _check_source(config: DataConfig) -> None:
    if config.source not in SOURCES:
        raise CorpusError(f"data.source={config.source!r}: one of {', '.join(SOURCES)} was expected")


def _files(config: DataConfig) -> list[tuple[Path, str]]:
    """The files of a source with their names below the configured paths, in order."""
    if not config.paths:
        raise CorpusError(f"data.source={config.source} needs data.paths: files or folders to read")
    suffixes = _SUFFIXES[config.source]
    found: list[tuple[Path, str]] = []
    for entry in config.paths:
        path = Path(entry).expanduser()
        if path.is_file():
            found.append((path, path.name))
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _plain_suffix(p) in suffixes)
            if not inside:
                raise CorpusError(f"{path}: no file ends in {', '.join(suffixes)} (or these with .xz, .gz)")
            found += [(p, p.relative_to(path).as_posix()) for p in inside]
        else:
            raise CorpusError(f"{path}: no such file or folder; data.paths was expected to name existing ones")
    return found


def _plain_suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _PACKED else path.suffix


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what reading a file may raise into one error that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 text ({error}); convert it to UTF-8") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise CorpusError(f"{path}: cannot be read: {error}") from error


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _stdlib_files(folder: Path) -> list[Path]:
    """Source and text files, ordered by the hash of their names: a prefix of the list is a fair sample."""
    found: list[Path] = []
    for current, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in _STDLIB_SKIPPED and not f.startswith("config-")]
        found += [Path(current, name) for name in names if name.endswith((".py", ".txt", ".rst", ".md"))]
    # Build-time dumps of compiler flags differ between machines and teach nothing.
    found = [p for p in found if not p.name.startswith("_sysconfigdata")]
    return sorted(found, key=lambda p: hashlib.sha256(p.relative_to(folder).as_posix().encode()).digest())


def _stdlib_documents(folder: Path) -> Iterator[str]:
    for path in _stdlib_files(folder):
        with _reading(path):
            text = path.read_text(encoding="utf-8", errors="replace")
        if path.parent.name == "pydoc_data" and path.name == "topics.py":
            yield from _help_topics(text)
        else:
            yield text


def _help_topics(text: str) -> list[str]:
    """The language reference's chapters, which Python keeps as one dictionary of strings."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            chapters = ast.literal_eval(node.value)
            return [chapters[name] for name in sorted(chapters)]
    return [text]


def _text_documents(path: Path, config: DataConfig) -> Iterator[str]:
    """One document per file; longer files are cut at blank lines, else at line ends, to a bounded size."""
    limit = int(config.document_kilobytes * 1024)
    lines: list[str] = []
    size = 0
    with _reading(path), _open_text(path) as file:
        for line in file:
            if limit and size >= limit and (not line.strip() or size >= 2 * limit):
                yield "".join(lines)
                lines, size = [], 0
            lines.append(line)
            size += len(line)
    yield "".join(lines)


def _jsonl_documents(path: Path, config: DataConfig) -> Iterator[str]:
    with _reading(path), _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(
                    f"{path}, line {number}: not JSON ({error}); one object a line was expected"
                ) from error
            text = record.get(config.text_field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                found = sorted(record) if isinstance(record, dict) else type(record).__name__
                raise CorpusError(
                    f"{path}, line {number}: found {found}, expected an object with the text in "
                    f"{config.text_field!r} (data.text_field)"
                )
            yield text


def _parquet_documents(path: Path, config: DataConfig) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CorpusError(f"{path}: reading parquet needs the package pyarrow (pip install pyarrow)") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise CorpusError(f"{path}: not a parquet file: {error}") from error
    with file:
        if config.text_field not in file.schema_arrow.names:
            raise CorpusError(
                f"{path}: found columns {file.schema_arrow.names}, expected {config.text_field!r} (data.text_field)"
            )
        for batch in file.iter_batches(batch_size=256, columns=[config.text_field]):
            for text in batch.column(0).to_pylist():
                if not isinstance(text, str):
                    raise CorpusError(f"{path}: column {config.text_field!r} holds {text!r}, expected strings")
                yield text


def _hub_documents(config: DataConfig) -> Iterator[str]:
    if not config.dataset:
        raise CorpusError("data.source=huggingface needs data.dataset: the name of a data set")
    try:
        import datasets
    except ImportError as error:
        raise CorpusError("data.source=huggingface needs the package datasets (pip install datasets)") from error
    name = config.dataset if config.subset is None else f"{config.dataset} ({config.subset})"
    try:
        stream = datasets.load_dataset(config.dataset, config.subset, split=config.split, streaming=True)
        for record in stream:
            text = record.get(config.text_field)
            if not isinstance(text, str):
                raise CorpusError(
                    f"data set {name}: found fields {sorted(record)}, expected the text in {config.text_field!r} "
                    "(data.text_field)"
                )
            yield text
    except CorpusError:
        raise
    except Exception as error:  # the library raises its own, the hub's and the network's errors
        raise CorpusError(
            f"data set {name}, split {config.split!r}: cannot be loaded: {type(error).__name__}: {error}. A machine "
            "without internet needs it in the Hugging Face cache, or as files with data.source=jsonl or parquet"
        ) from error
