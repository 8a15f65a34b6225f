"""The unit tree of a Genesys implementation artefact, as a template tree. Its code is text here and never runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from asiarch_hpc.designs.edits import Edits
from asiarch_hpc.designs.hashing import parse
from asiarch_hpc.designs.template import (
    Declaration,
    TemplateTree,
    Unit,
    declarations_statement,
    declared_children,
    written_declarations,
)
from asiarch_hpc.errors import DesignError, RecordError
from asiarch_hpc.records import Json


def is_artefact(data: object) -> bool:
    """Whether JSON is an implementation artefact, or the tree out of one."""
    if not isinstance(data, dict):
        return False
    tree = data.get("implementation", data)
    return "implementation" in data or (isinstance(tree, dict) and {"root", "units", "declares"} <= set(tree))


def template_of(data: Json, *, where: str, name: str = "design") -> TemplateTree | None:
    """The tree of an implementation artefact (`implementation.json`), None where it has none yet.

    Each unit's file gets its unit tests, which the artefact keeps apart, and declares the children that the artefact
    names: the lists in the published files are often those of an earlier version of the unit.

    Args:
        where: file and record, for messages.
        name: for a tree without one.

    Raises:
        RecordError: a field is missing or of a wrong type.
    """
    tree = data.get("implementation", data)
    if tree is None:
        return None
    where = f"{where}: implementation" if "implementation" in data else where
    units = _field(tree, "units", dict, where)
    if not units:
        return None
    root = _field(tree, "root", str, where)
    if root not in units:
        raise RecordError(f"{where}: field 'root': found {root!r}, expected one of the units {sorted(units)}")
    declares = tree.get("declares") or {}
    specs = {key: _declaration(key, value, f"{where}: declares: {key}") for key, value in _items(declares, where)}
    for key, unit in _items(units, where):
        if isinstance(unit, dict) and unit.get("spec") is not None:
            specs.setdefault(key, _declaration(key, unit["spec"], f"{where}: units: {key}: spec"))
    built = {key: _unit(unit, specs, f"{where}: units: {key}") for key, unit in _items(units, where)}
    found = tree.get("name")
    return TemplateTree(name=found if isinstance(found, str) and found else name, root=root, units=built)


def _unit(unit: Any, specs: Mapping[str, Declaration], where: str) -> Unit:
    code = _field(unit, "code", str, where)
    args = _field(unit, "args", dict, where) if unit.get("args") is not None else {}
    tests = _field(unit, "gautests", dict, where) if unit.get("gautests") is not None else {}
    children = _field(unit, "children", list, where) if unit.get("children") is not None else []
    for text in (*tests.values(), *children):
        if not isinstance(text, str):
            raise RecordError(f"{where}: field 'children' or 'gautests': found {text!r}, expected texts")
    _check_finite(args, f"{where}: field 'args'")
    wanted = [specs.get(child, Declaration(child)) for child in dict.fromkeys(children)]
    source = _declaring(code, wanted).rstrip("\n")
    return Unit("\n\n\n".join([source, *(test.strip("\n") for test in tests.values())]) + "\n", dict(args))


def _check_finite(args: Json, where: str) -> None:
    try:
        json.dumps(args, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{where}: {error}; expected finite numbers") from error


def _declaring(code: str, children: Sequence[Declaration]) -> str:
    """The code with declarations of these children; unchanged where it declares them, or is not valid Python."""
    try:
        module = parse(code)
    except DesignError:
        return code
    try:
        declared = declared_children(module)
    except DesignError:
        declared = None
    if declared is not None and {child.name for child in declared} == {child.name for child in children}:
        return code
    statement = declarations_statement(module)
    if statement is None:
        return f"{code.rstrip()}\n\n\n{written_declarations(children)}\n"
    edits = Edits(code)
    edits.replace(statement, written_declarations(children))
    return edits.apply()


def _declaration(name: str, spec: Any, where: str) -> Declaration:
    """A declaration out of a specification, which artefacts keep as JSON in a text."""
    if isinstance(spec, str):
        try:
            spec = json.loads(spec)
        except ValueError as error:
            raise RecordError(f"{where}: not valid JSON ({error}); expected unitname, inputs and outputs") from error
    if not isinstance(spec, dict):
        raise RecordError(f"{where}: found {type(spec).__name__}, expected an object with unitname, inputs, outputs")
    sides = []
    for key in ("inputs", "outputs"):
        values = spec.get(key) or []
        if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
            raise RecordError(f"{where}: field {key!r}: found {values!r}, expected a list of names")
        sides.append(tuple(values))
    requirements = spec.get("requirements")
    return Declaration(name, requirements if isinstance(requirements, str) else "", *sides)


def _items(value: Any, where: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise RecordError(f"{where}: found {type(value).__name__}, expected an object by unit")
    return list(value.items())


def _field(data: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(data, dict):
        raise RecordError(f"{where}: found {type(data).__name__}, expected an object with the field {name!r}")
    if name not in data:
        raise RecordError(f"{where}: field {name!r} is missing; found {sorted(data)}")
    if not isinstance(data[name], kind) or (isinstance(data[name], float) and not math.isfinite(data[name])):
        raise RecordError(f"{where}: field {name!r}: found {str(data[name])[:60]!r}, expected {kind.__name__}")
    return data[name]
