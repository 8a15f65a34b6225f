"""Documents out of files: text, JSON lines, parquet, and the standard library's."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import lzma
import os
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from asiarch_hpc.config import TextConfig
from asiarch_hpc.errors import CorpusError

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


def files_of(config: TextConfig) -> list[tuple[Path, str]]:
    """The files of a source with their names below the configured paths, in order.

    Raises:
        CorpusError: no path, a missing one, or a folder without a file of the source's format.
    """
    if config.source == "python-stdlib":
        folder = stdlib_folder()
        return [(path, path.relative_to(folder).as_posix()) for path in _stdlib_files(folder)]
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


def documents_of(raw: BinaryIO, path: Path, config: TextConfig) -> Iterator[str]:
    """The documents of one opened file, in order.

    Raises:
        CorpusError: wrong format; the message names the file and the line.
    """
    read = {
        "python-stdlib": _stdlib_documents,
        "text": _text_documents,
        "jsonl": _jsonl_documents,
        "parquet": _parquet_documents,
    }[config.source]
    return read(raw, path, config)


def stdlib_folder() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def passes(record: dict[str, Any], config: TextConfig, where: str) -> bool:
    """Whether a record reaches every `minimum`.

    Raises:
        CorpusError: a field that is compared holds no number.
    """
    for name, least in config.minimum.items():
        value = record.get(name)
        if not isinstance(value, int | float):
            raise CorpusError(f"{where}: found {value!r} in {name!r}, expected a number (data.minimum)")
        if not value >= least:
            return False
    return True


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what reading a file may raise into one error that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 text ({error}); convert it to UTF-8") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise CorpusError(f"{path}: cannot be read: {error}") from error


def _plain_suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _PACKED else path.suffix


def _as_text(raw: BinaryIO, path: Path) -> io.TextIOWrapper:
    packed: dict[str, Callable[[BinaryIO], Any]] = {
        ".xz": lzma.LZMAFile,
        ".gz": lambda file: gzip.GzipFile(fileobj=file),
    }
    return io.TextIOWrapper(packed[path.suffix](raw) if path.suffix in packed else raw, encoding="utf-8")


def _stdlib_files(folder: Path) -> list[Path]:
    """Source and text files, ordered by the hash of their names: a prefix of the list is a fair sample."""
    found: list[Path] = []
    for current, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in _STDLIB_SKIPPED and not f.startswith("config-")]
        found += [Path(current, name) for name in names if name.endswith((".py", ".txt", ".rst", ".md"))]
    # Build-time dumps of compiler flags differ between machines and teach nothing.
    found = [p for p in found if not p.name.startswith("_sysconfigdata")]
    return sorted(found, key=lambda p: hashlib.sha256(p.relative_to(folder).as_posix().encode()).digest())


def _stdlib_documents(raw: BinaryIO, path: Path, config: TextConfig) -> Iterator[str]:
    with io.TextIOWrapper(raw, encoding="utf-8", errors="replace") as file:
        text = file.read()
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


def _text_documents(raw: BinaryIO, path: Path, config: TextConfig) -> Iterator[str]:
    """One document per file; longer files are cut at blank lines, else at line ends, to a bounded size."""
    limit = int(config.document_kilobytes * 1024)
    lines: list[str] = []
    size = 0
    with _as_text(raw, path) as file:
        for line in file:
            if limit and size >= limit and (not line.strip() or size >= 2 * limit):
                yield "".join(lines)
                lines, size = [], 0
            lines.append(line)
            size += len(line)
    yield "".join(lines)


def _jsonl_documents(raw: BinaryIO, path: Path, config: TextConfig) -> Iterator[str]:
    with _as_text(raw, path) as file:
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
            if passes(record, config, f"{path}, line {number}"):
                yield text


def _parquet_documents(raw: BinaryIO, path: Path, config: TextConfig) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CorpusError(f"{path}: reading parquet needs the package pyarrow (pip install pyarrow)") from error
    try:
        file = pyarrow.parquet.ParquetFile(raw)
    except (OSError, pyarrow.ArrowException) as error:
        raise CorpusError(f"{path}: not a parquet file: {error}") from error
    wanted = list(dict.fromkeys([config.text_field, *config.minimum]))
    if missing := [name for name in wanted if name not in file.schema_arrow.names]:
        raise CorpusError(
            f"{path}: found columns {file.schema_arrow.names}, expected {missing[0]!r} (data.text_field, data.minimum)"
        )
    for batch in file.iter_batches(batch_size=256, columns=wanted):
        for record in batch.to_pylist() if config.minimum else ():
            if passes(record, config, str(path)):
                yield _string(record[config.text_field], path, config)
        for text in () if config.minimum else batch.column(0).to_pylist():
            yield _string(text, path, config)


def _string(text: object, path: Path, config: TextConfig) -> str:
    if not isinstance(text, str):
        raise CorpusError(f"{path}: column {config.text_field!r} holds {text!r}, expected strings")
    return text
