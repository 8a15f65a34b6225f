"""What Genesys published (arXiv 2506.20249, github.com/allenai/genesys), read as data: nothing of it is executed.

Three forms, told apart by their content:
  design folder    metadata.json with proposal.json, implementation.json (units as code) and verifications/*.json
  artefact         one implementation.json or verification alone
  verifications    JSON lines, one evaluation a line, as collected for research: results, lineage, training record
A folder is searched for design folders and for files of the other forms. A design may stand in several places; they
are joined by its acronym and must not contradict each other. Seed designs of the publisher's library ("core:gpt2")
bear the name by which others refer to them ("gpt2").

The score of a design is None: Genesys ranks designs against each other and publishes no number of a single one.
Every evaluation is examined by `untrained.untrained_evidence`, and the design marked where it speaks.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asiarch_hpc.designs.template_compose import compose_template
from asiarch_hpc.errors import DesignError, RecordError
from asiarch_hpc.importers.genesys_units import template_of
from asiarch_hpc.importers.published import Curve, PublishedDesign, PublishedRun, read_source
from asiarch_hpc.importers.untrained import untrained_evidence
from asiarch_hpc.records import Json, Mark, Metrics, SourceFile

ORIGIN = "genesys"
VERSION = 1

_EXPECTED = "a design folder, an artefact (implementation.json or a verification), or JSON lines of verifications"
_STEP, _LOSS = "train/global_step", "train/loss"
_LIBRARY = "core:"  # designs of the publisher's library

Node = dict[str, Any]


def read(path: Path) -> PublishedRun:
    """Reads a file, a design folder, or all that are below a folder, joined by acronym.

    Raises:
        RecordError: no such file, none of the forms, a malformed record, two places that contradict each other.
    """
    nodes: dict[str, Node] = {}
    files: list[SourceFile] = []
    root = path if path.is_dir() else path.parent
    for file in _candidates(path):
        data, source = read_source(file)
        found = False
        for where, node in _nodes(file, data):
            found = True
            _join(nodes.setdefault(node["key"], {}), node, where)
        if found:
            files.append(dataclasses.replace(source, name=file.relative_to(root).as_posix()))
    if not nodes:
        raise RecordError(f"{path}: nothing that Genesys published; expected {_EXPECTED}")
    designs = tuple(_design(nodes[key]) for key in sorted(nodes))
    return PublishedRun(origin=ORIGIN, version=VERSION, files=tuple(files), designs=designs, notes=_notes(designs))


def _notes(designs: tuple[PublishedDesign, ...]) -> tuple[str, ...]:
    scales = [scale for design in designs for scale in design.results]
    untrained = [scale for design in designs for scale in design.metadata.get("untrained", {})]
    notes = [f"{len(untrained)} of {len(scales)} evaluations are those of untrained weights"] if untrained else []
    broken = [design.key for design in designs if "composition" in design.metadata]
    return (*notes, *([f"without a program: {', '.join(broken)}"] if broken else []))


def _candidates(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    names = ("metadata.json", "proposal.json", "implementation.json")
    files = (file for pattern in ("*.json", "*.jsonl") for file in path.rglob(pattern) if file.is_file())
    return sorted(
        file for file in files if file.name in names or file.parent.name == "verifications" or file.suffix == ".jsonl"
    )


def _nodes(file: Path, data: bytes) -> Iterator[tuple[str, Node]]:
    """What a file says about designs, each with where it stands."""
    if file.suffix == ".jsonl":
        for number, line in enumerate(data.splitlines(), start=1):
            if line.strip():
                where = f"{file}, record {number}"
                yield where, _verified(_object(_parse(line, where), where), where)
        return
    content = _object(_parse(data, str(file)), str(file))
    if "verification_report" in content:
        yield str(file), _verification(content, file)
    elif "implementation" in content or {"root", "units", "declares"} <= set(content):
        yield str(file), _implementation(content, file)
    elif file.name == "metadata.json":
        yield str(file), _metadata(content, file)
    elif file.name == "proposal.json":
        yield str(file), _proposal(content, file)
    else:
        raise RecordError(f"{file}: found the fields {sorted(content)[:12]}, expected {_EXPECTED}")


def _parse(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not valid JSON ({error}); expected {_EXPECTED}") from error


def _object(value: Any, where: str) -> Json:
    if not isinstance(value, dict):
        raise RecordError(f"{where}: found {type(value).__name__}, expected an object")
    return value


def _folder_key(file: Path) -> str:
    folder = file.parent.parent if file.parent.name == "verifications" else file.parent
    return folder.resolve().name


def _metadata(content: Json, file: Path) -> Node:
    where = str(file)
    snapshot = _field(content, "sess_snapshot", dict, where, default={})
    return {
        "key": _field(content, "acronym", str, where),
        "title": _field(content, "title", str, where, default=""),
        "parents": _names(content, "seed_ids", where),
        "references": _names(snapshot, "ref_ids", f"{where}: sess_snapshot"),
        "mode": _field(snapshot, "mode", str, f"{where}: sess_snapshot", default=""),
    }


def _proposal(content: Json, file: Path) -> Node:
    where = str(file)
    node: Node = {
        "key": _folder_key(file),
        "motivation": _field(content, "proposal", str, where, default=""),
        "abstract": _field(content, "abstract", str, where, default=""),
    }
    for name, field in (("proposal_rating", "rating"), ("costs", "costs"), ("proposal_passed", "passed")):
        value = content.get(field)
        if isinstance(value, bool | int | float | dict):
            node[name] = _finite(value)
    return node


def _implementation(content: Json, file: Path) -> Node:
    where = str(file)
    tree = template_of(content, where=where, name=_folder_key(file))
    wrapped = content.get("implementation", content)
    key = _folder_key(file) if (file.parent / "metadata.json").is_file() else tree.name if tree else _folder_key(file)
    status = content.get("status")
    node: Node = {"key": key, "status": status if isinstance(status, str) else ""}
    rating = wrapped.get("rating") if isinstance(wrapped, dict) else None
    if isinstance(rating, int | float):
        node["implementation_rating"] = _finite(rating)
    if tree is not None:
        node["units"] = dataclasses.replace(tree, name=key)
    return node


def _verification(content: Json, file: Path) -> Node:
    where = str(file)
    scale = _field(content, "scale", str, where)
    report = _field(content, "verification_report", dict, where)
    node: Node = {"key": _folder_key(file), "results": {}, "curves": {}, "sizes": {}}
    evaluation = report.get("eval_results.json")
    if evaluation is not None:
        inside = f"{where}: eval_results.json"
        results = _field(_object(evaluation, inside), "results", dict, inside)
        node["results"] = {scale: _results(results, inside)}
        config = evaluation.get("config")
        size = config.get("model_num_parameters") if isinstance(config, dict) else None
        if isinstance(size, int):
            node["sizes"] = {scale: size}
    curve = _curve(report.get("training_record.csv"), f"{where}: training_record.csv")
    if curve is not None:
        node["curves"] = {scale: curve}
    return node


def _verified(record: Json, where: str) -> Node:
    """One line of collected verifications."""
    scale = _field(record, "scale", str, where)
    curve = _curve(record.get("training_record_csv"), f"{where}: field 'training_record_csv'")
    return {
        "key": _field(record, "design", str, where).removeprefix(_LIBRARY),
        "title": _field(record, "title", str, where, default=""),
        "parents": _names(record, "seed_ids", where),
        "references": _names(record, "ref_ids", where),
        "mode": _field(record, "mode", str, where, default=""),
        "results": {scale: _results(_field(record, "results", dict, where), where)},
        "curves": {} if curve is None else {scale: curve},
    }


def _results(results: Json, where: str) -> dict[str, Metrics]:
    found: dict[str, Metrics] = {}
    for task, metrics in results.items():
        place = f"{where}: field 'results': {task}"
        values = {}
        for name, value in _object(metrics, place).items():
            if name == "alias":
                continue
            if isinstance(value, str) and value.strip().lower() in ("n/a", "nan", ""):
                value = None
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise RecordError(f"{place}: {name}: found {value!r}, expected a number or 'N/A'")
            values[name] = float(value) if value is not None and math.isfinite(value) else None
        found[task] = values
    return found


def _curve(table: Any, where: str) -> Curve | None:
    """The training losses of a CSV with columns for step and loss; rows without either are skipped."""
    if table is None or table == "":
        return None
    if not isinstance(table, str):
        raise RecordError(f"{where}: found {type(table).__name__}, expected CSV text")
    rows = csv.DictReader(io.StringIO(table))
    if not {_STEP, _LOSS} <= set(rows.fieldnames or ()):
        raise RecordError(f"{where}: found the columns {rows.fieldnames}, expected {_STEP} and {_LOSS} among them")
    points = []
    for number, row in enumerate(rows, start=1):
        if row[_STEP] and row[_LOSS]:
            try:
                points.append((float(row[_STEP]), float(row[_LOSS])))
            except ValueError as error:
                raise RecordError(f"{where}: row {number}: {error}; expected numbers") from error
    if not points:
        return None
    return Curve(steps=tuple(step for step, _ in points), losses=tuple(loss for _, loss in points))


def _field(data: Json, name: str, kind: type, where: str, *, default: Any = None) -> Any:
    """A field of the given type; one with a default may be missing or null."""
    value = data.get(name)
    if value is None and default is not None:
        return default
    if name not in data:
        raise RecordError(f"{where}: field {name!r} is missing, expected {kind.__name__}; found {sorted(data)[:12]}")
    empty = isinstance(value, str) and default is None and not value.strip()
    if not isinstance(value, kind) or empty:
        raise RecordError(f"{where}: field {name!r}: found {repr(value)[:60]}, expected {kind.__name__}")
    return value


def _names(data: Json, name: str, where: str) -> tuple[str, ...]:
    values = _field(data, name, list, where, default=[])
    if not all(isinstance(value, str) and value for value in values):
        raise RecordError(f"{where}: field {name!r}: found {values!r}, expected a list of names")
    return tuple(dict.fromkeys(value.removeprefix(_LIBRARY) for value in values))


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _join(known: Node, node: Node, where: str) -> None:
    """Adds what one place says about a design to what others said. Empty values say nothing."""
    for name, value in node.items():
        old = known.get(name)
        if isinstance(value, dict) and name in ("results", "curves", "sizes"):
            for scale, item in value.items():
                _agree(known.setdefault(name, {}).setdefault(scale, item), item, where, f"{name}: {scale}", known)
        elif not old:
            known[name] = value
        elif value not in ("", (), None):
            _agree(old, value, where, name, known)


def _agree(old: Any, new: Any, where: str, name: str, known: Node) -> None:
    if old != new and repr(old) != repr(new):  # NaN differs from itself
        raise RecordError(
            f"{where}: field {name!r}: found {repr(new)[:60]}, expected {repr(old)[:60]}, which another place says of "
            f"{known['key']}"
        )


def _design(node: Node) -> PublishedDesign:
    tree = node.get("units")
    source, trouble = None, None
    if tree is not None:
        try:
            source = compose_template(tree)
        except DesignError as error:
            trouble = str(error)
    results = node.get("results", {})
    untrained = {scale: why for scale, tasks in results.items() if (why := untrained_evidence(tasks)) is not None}
    marks: list[Mark] = ["untrained_evaluation"] if untrained else []
    if node.get("status") and (node["status"] != "implemented" or source is None):
        marks.append("incomplete")
    kept = ("title", "mode", "status", "abstract", "proposal_rating", "proposal_passed", "implementation_rating")
    metadata = {name: node[name] for name in (*kept, "costs") if node.get(name) not in (None, "")}
    if node.get("sizes"):
        metadata["parameters"] = node["sizes"]
    metadata |= {"untrained": untrained} if untrained else {}
    metadata |= {"composition": trouble} if trouble else {}
    return PublishedDesign(
        key=node["key"],
        name=node["key"],
        source=source,
        units=None if tree is None else tree.to_json(),
        motivation=node.get("motivation", ""),
        parents=node.get("parents", ()),
        references=node.get("references", ()),
        results=results,
        curves=node.get("curves", {}),
        marks=tuple(marks),
        metadata=metadata,
    )
