"""What ASI-Arch published (arXiv 2507.18074, github.com/GAIR-NLP/ASI-Arch, folder `data`), read as data.

Three kinds of file, told apart by their content:
  gallery  a list of records with program, motivation, training curve and test row of the chosen architectures
  tree     {"total_records": n, "results": [...]}: index, name, parent and score of every node of the search
  digest   the gallery without programs as JSON lines, curve and tests split into header and rows

The same node may stand in several files of a folder; they are joined by index, and must not contradict each other.
A gallery's curve and tests are those of the 340M run; the score was computed from the smaller 20M run, whose curves
and tests were not released, so the two do not follow from each other.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from asiarch_hpc.errors import RecordError
from asiarch_hpc.importers.published import Curve, PublishedDesign, PublishedRun, read_source
from asiarch_hpc.records import Json, Metrics, SourceFile

ORIGIN = "asi-arch"
VERSION = 1
SCALE = "340M"  # of the gallery's curves and tests
NAMES_SHOWN = 8
VALUE = "value"  # name of a test's metric: the files do not say which one it is

# Texts that are kept as they are; a database export has more of them than the gallery.
_TEXTS = ("name_new", "summary", "analysis", "cognition", "program_sha256")
_USED = frozenset(
    {"index", "name", "parent", "score", "parameters", "program", "motivation", "result", "train", "test"}
)
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_MISSING_NUMBERS = ("", "nan", "none", "null")

T = TypeVar("T")


def read(path: Path) -> PublishedRun:
    """Reads one file, or all `.json` and `.jsonl` files of a folder, joined by index.

    Raises:
        RecordError: no such file, none of the three kinds, a malformed record, two files that contradict each other.
    """
    nodes: dict[int, dict[str, Any]] = {}
    files: list[SourceFile] = []
    others: list[str] = []
    dropped: set[str] = set()
    for file in _candidates(path):
        data, source = read_source(file)
        records = _records(file, data)
        if records is None:
            others.append(file.name)
            continue
        files.append(source)
        seen: set[int] = set()
        for where, record in records:
            node = _node(record, where)
            if node["index"] in seen:
                raise RecordError(f"{where}: field 'index': {node['index']} stands here twice; each node has its own")
            seen.add(node["index"])
            _join(nodes.setdefault(node["index"], {}), node, where)
            dropped |= set(record) - _USED - set(_TEXTS)
    if not nodes:
        raise RecordError(f"{path}: no published record of ASI-Arch; expected {_EXPECTED}")
    left_out = {"files of another form": others, "fields": sorted(dropped)}
    notes = tuple(f"{what} that were left out: {_listed(names)}" for what, names in left_out.items() if names)
    designs = tuple(_design(nodes[index]) for index in sorted(nodes))
    return PublishedRun(origin=ORIGIN, version=VERSION, files=tuple(files), designs=designs, notes=notes)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


_EXPECTED = "a gallery (a list of records), a search tree (an object with total_records and results), or JSON lines"


def _candidates(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl") and file.is_file())


def _records(file: Path, data: bytes) -> Iterator[tuple[str, Json]] | None:
    """The records of a file, each with where it stands; None where the file is of none of the kinds.

    Raises:
        RecordError: not JSON, or a tree whose record count is wrong.
    """
    if file.suffix == ".jsonl":
        lines = [line for line in enumerate(data.splitlines(), start=1) if line[1].strip()]
        parsed = [(f"{file}, line {number}", _parse(line, f"{file}, line {number}")) for number, line in lines]
        return _objects(parsed)
    content = _parse(data, str(file))
    listed = content
    if isinstance(content, dict):
        if not {"total_records", "results"} <= set(content):
            return None
        listed, total = content["results"], content["total_records"]
        if not isinstance(listed, list):
            raise RecordError(f"{file}: field 'results': found {type(listed).__name__}, expected a list of records")
        if total != len(listed):
            raise RecordError(
                f"{file}: field 'total_records': found {total!r}, expected {len(listed)}, the number of results; "
                "the file was cut short or edited"
            )
    if not isinstance(listed, list):
        return None
    return _objects([(f"{file}, record {number}", record) for number, record in enumerate(listed, start=1)])


def _parse(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors, numbers without end, nesting
        raise RecordError(f"{where}: not valid JSON ({error}); expected {_EXPECTED}") from error


def _objects(records: list[tuple[str, Any]]) -> Iterator[tuple[str, Json]]:
    for where, record in records:
        if not isinstance(record, dict):
            raise RecordError(f"{where}: found {type(record).__name__}, expected an object with index, name and parent")
        yield where, record


def _node(record: Json, where: str) -> dict[str, Any]:
    """The checked content of one record; fields that it lacks are absent."""
    node: dict[str, Any] = {
        "index": _field(record, "index", where, _index, "an integer that is not negative"),
        "name": _field(record, "name", where, _name, "a text that is not empty"),
        "parent": _field(record, "parent", where, lambda v: v if v is None else _index(v), "an index, or null"),
    }
    optional: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
        ("score", lambda value: value if value is None else _number(value), "a finite number, or null"),
        ("parameters", _parameters, "a count such as '495.73M'"),
        ("program", _text, "a text"),
        ("motivation", _text, "a text"),
        *((name, _text, "a text") for name in _TEXTS),
    )
    for name, read_value, expected in optional:
        if record.get(name) is not None:
            node[name] = _field(record, name, where, read_value, expected)
    tables = record
    if "result" in record:
        tables = _field(record, "result", where, lambda value: _instance(value, dict), "an object with train and test")
    if table := _table(tables.get("train"), f"{where}: field 'train'"):
        steps = tuple(_cell(head, f"{where}: field 'train': header", finite=True) for head, _ in table)
        losses = tuple(_cell(cell, f"{where}: field 'train': loss") for _, cell in table)
        node["curve"] = Curve(steps=steps, losses=losses)
    if table := _table(tables.get("test"), f"{where}: field 'test'"):
        node["tests"] = {task: _metrics(cell, f"{where}: field 'test': {task}") for task, cell in table}
    return node


def _field(record: Json, name: str, where: str, read_value: Callable[[Any], T], expected: str) -> T:
    if name not in record:
        raise RecordError(f"{where}: field '{name}' is missing, expected {expected}; found {sorted(record)}")
    try:
        return read_value(record[name])
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"{where}: field '{name}': found {_shown(record[name])}, expected {expected}") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _instance(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(kind)
    return value


def _index(value: Any) -> int:
    if _instance(value, int) < 0:
        raise ValueError(value)
    return int(value)


def _text(value: Any) -> str:
    _instance(value, str).encode()  # half a surrogate pair is no text: it could not be stored
    return str(value)


def _name(value: Any) -> str:
    if not _text(value).strip():
        raise ValueError(value)
    return str(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)


def _parameters(value: Any) -> int:
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s?([KMB]?)", _instance(value, str).strip())
    if match is None:
        raise ValueError(value)
    return round(float(match[1]) * _FACTORS[match[2]])


def _table(value: Any, where: str) -> list[tuple[str, Any]]:
    """Pairs of column and value of a table with one row; the row's first cell is its name.

    The gallery has CSV text whose header begins with an empty cell, the digest {"header": [...], "rows": [[...]]}
    whose header lacks that cell. Empty where there is no table.
    """
    if value is None or value == "":
        return []
    if isinstance(value, str):
        lines = [line.split(",") for line in value.splitlines() if line.strip()]
        header, rows = lines[0][1:] if lines else [], lines[1:]
    elif isinstance(value, dict) and isinstance(value.get("header"), list) and isinstance(value.get("rows"), list):
        header, rows = value["header"], value["rows"]
    else:
        raise RecordError(f"{where}: found {_shown(value)}, expected CSV text, or an object with header and rows")
    if len(rows) != 1 or not isinstance(rows[0], list) or len(rows[0]) != len(header) + 1:
        sizes = [len(row) if isinstance(row, list) else type(row).__name__ for row in rows]
        raise RecordError(
            f"{where}: found rows of {sizes} cells, expected one row: a name and {len(header)} values for the header"
        )
    heads = [str(head).strip() for head in header]
    if not all(heads) or len(set(heads)) != len(heads):
        raise RecordError(f"{where}: header {_shown(heads)}, expected a different name for each column")
    return list(zip(heads, rows[0][1:], strict=True))


def _cell(value: Any, where: str, *, finite: bool = False) -> float:
    """A number, NaN where the cell says so; numbers come as text in CSV."""
    try:
        if isinstance(value, str):
            value = math.nan if value.strip().lower() in _MISSING_NUMBERS else float(value)
        number = float(_instance(value, int | float))  # type: ignore[arg-type]
        if finite and not math.isfinite(number):
            raise ValueError(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"{where}: found {_shown(value)}, expected a number") from error
    return number


def _metrics(value: Any, where: str) -> Metrics:
    number = _cell(value, where)
    return {VALUE: number if math.isfinite(number) else None}


def _join(known: dict[str, Any], node: Mapping[str, Any], where: str) -> None:
    """Adds what a record says about a node to what other files said."""
    for name, value in node.items():
        old = known.setdefault(name, value)
        same = old == value or (isinstance(value, Curve) and repr(old) == repr(value))  # NaN differs from itself
        if not same and None in (old, value) and name == "score":
            known[name] = value if old is None else old
        elif not same:
            raise RecordError(
                f"{where}: field '{name}': found {_shown(value)}, expected {_shown(old)}, "
                f"which another file says of index {node['index']}"
            )
    if {"program", "program_sha256"} <= set(known):
        found = hashlib.sha256(known["program"].encode()).hexdigest()
        if found != known["program_sha256"]:
            raise RecordError(
                f"{where}: field 'program_sha256': the program of index {node['index']} hashes to {found[:16]}…, "
                f"expected {known['program_sha256'][:16]}…"
            )


def _design(node: Mapping[str, Any]) -> PublishedDesign:
    program = node.get("program", "")
    return PublishedDesign(
        key=str(node["index"]),
        name=node["name"],
        source=program if program.strip() else None,
        motivation=node.get("motivation", ""),
        parents=() if node["parent"] is None else (str(node["parent"]),),
        score=node.get("score"),
        parameters=node.get("parameters"),
        results={SCALE: node["tests"]} if "tests" in node else {},
        curves={SCALE: node["curve"]} if "curve" in node else {},
        metadata={"index": node["index"], **{name: node[name] for name in _TEXTS if name in node}},
    )
