"""The unit library: what each unit is called, is for, holds and can be set to, read without importing torch.

A unit is a class in `units/*.py` that declares itself in plain class attributes:

    KIND = "gate"                              what it may be used as
    CHILDREN = {"norm": "norm"}                slot -> accepted kind, or a list of accepted kinds
    ARGUMENTS = {"width": (4, [2, 3, 4, 8])}   name -> (default, list of choices | (low, high) range)

The declarations guide the search and are left out of composed designs, so that editing them changes no design.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from asiarch_hpc.errors import DesignError

UNITS = Path(__file__).resolve().parent / "units"
BASE = "base.py"
KINDS = (
    "block",  # mixer and feed-forward with their residuals
    "stack",  # whole blocks
    "mixer",  # carries information along the sequence
    "combinator",  # mixers made of mixers
    "ffn",  # works on each position
    "memory",  # a small store; stands beside a mixer or in the place of a feed-forward
    "norm",
    "gate",  # scales a result by what another input says
    "convolution",  # causal filters of single channels
    "position",  # for queries and keys
    "feature_map",  # for queries and keys of linear attention
)
DECLARATIONS = ("KIND", "CHILDREN", "ARGUMENTS")

Scalar = bool | int | float | str


@dataclass(frozen=True)
class ArgSpec:
    """One argument of a unit: its default and either the allowed choices or an inclusive range."""

    default: Scalar
    choices: tuple[Scalar, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def accepts(self, value: object) -> bool:
        """Whether `value` is of the default's type and among the choices or in the range."""
        if not _same_type(value, self.default):
            return False
        if self.choices:
            return value in self.choices
        assert isinstance(value, (int, float))
        return self.low <= value <= self.high

    def resolve(self, value: Scalar | None) -> Scalar:
        """The default for None, else the value in the default's type (`2` for a float argument is `2.0`)."""
        if value is None:
            return self.default
        return float(value) if isinstance(self.default, float) else value

    def expected(self) -> str:
        """What `accepts` takes, in words."""
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        return f"a number of type {type(self.default).__name__} in [{self.low}, {self.high}]"


@dataclass(frozen=True)
class UnitSpec:
    """What the library knows about a unit.

    `source` is the class as written, `code` the same without the declarations, `imports` the import lines that
    the code needs (one name each), `children` maps a slot to the kinds that it accepts.
    """

    name: str
    kind: str
    summary: str
    children: Mapping[str, tuple[str, ...]]
    args: Mapping[str, ArgSpec]
    source: str
    code: str
    imports: tuple[str, ...]


@dataclass(frozen=True)
class Foundation:
    """The classes of `units/base.py`, which every composed design contains, and the imports that they need."""

    code: str
    imports: tuple[str, ...]


@cache
def library() -> Mapping[str, UnitSpec]:
    """All units by name, ordered by file and place in the file; read once."""
    return read_library(UNITS)


@cache
def foundation() -> Foundation:
    """The common base classes of all units; read once."""
    path = UNITS / BASE
    text, module = _parse(path)
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    names = {name for node in classes for name in _names(node)}
    code = "\n\n\n".join(_text(text, node) for node in classes)
    return Foundation(code=code, imports=_needed(module, names))


def read_library(folder: Path) -> Mapping[str, UnitSpec]:
    """Reads every class with a KIND from the folder's Python files.

    Raises:
        DesignError: a file does not parse, a declaration is not a literal or names an unknown kind, a unit lacks
            its line of documentation, or two units share a name. The message names file and line.
    """
    units: dict[str, UnitSpec] = {}
    for path in sorted(folder.glob("*.py")):
        text, module = _parse(path)
        for node in module.body:
            if isinstance(node, ast.ClassDef) and any(name == "KIND" for name, _ in _declared(node)):
                spec = _unit(path, text, module, node)
                if spec.name in units:
                    raise DesignError(f"{path}:{node.lineno}: unit {spec.name} exists already; give it another name")
                units[spec.name] = spec
    if not units:
        raise DesignError(f"{folder}: no unit classes found; expected *.py files with classes that declare KIND")
    return MappingProxyType(units)


def of_kinds(units: Mapping[str, UnitSpec], kinds: Collection[str]) -> list[UnitSpec]:
    """The units of the given kinds, in library order."""
    return [spec for spec in units.values() if spec.kind in kinds]


def least_heights(units: Mapping[str, UnitSpec]) -> Mapping[str, int]:
    """For each unit, the number of levels of the smallest tree with it on top (1 for a leaf).

    Units whose slots no finite tree can fill are absent.
    """
    lowest: dict[str, int] = {}  # by kind
    while True:
        heights: dict[str, int] = {}
        for name, spec in units.items():
            below = [
                min((lowest[kind] for kind in kinds if kind in lowest), default=0) for kinds in spec.children.values()
            ]
            if all(below):
                heights[name] = 1 + max(below, default=0)
        found: dict[str, int] = {}
        for name, levels in heights.items():
            found[units[name].kind] = min(levels, found.get(units[name].kind, levels))
        if found == lowest:
            return heights
        lowest = found


def _unit(path: Path, text: str, module: ast.Module, node: ast.ClassDef) -> UnitSpec:
    where = f"{path}:{node.lineno}: unit {node.name}"
    values: dict[str, Any] = {"CHILDREN": {}, "ARGUMENTS": {}}
    for name, value in _declared(node):
        try:
            values[name] = ast.literal_eval(value)
        except ValueError as error:
            raise DesignError(f"{where}: {name} must be a literal that can be read without running code") from error
    children = {
        slot: (kinds,) if isinstance(kinds, str) else tuple(kinds) for slot, kinds in values["CHILDREN"].items()
    }
    for kind in [values["KIND"], *(kind for kinds in children.values() for kind in kinds)]:
        if kind not in KINDS:
            raise DesignError(f"{where}: unknown kind {kind!r}; expected one of {', '.join(KINDS)}")
    docstring = ast.get_docstring(node)
    if not docstring:
        raise DesignError(f"{where}: no docstring; its first line is the unit's summary in the library")
    return UnitSpec(
        name=node.name,
        kind=values["KIND"],
        summary=docstring.splitlines()[0],
        children=MappingProxyType(children),
        args=MappingProxyType({name: _argument(where, name, v) for name, v in values["ARGUMENTS"].items()}),
        source=_text(text, node),
        code=_without_declarations(text, node),
        imports=_needed(module, _names(node)),
    )


def _argument(where: str, name: str, declared: Any) -> ArgSpec:
    try:
        default, allowed = declared
        spec = (
            ArgSpec(default, choices=tuple(allowed))
            if isinstance(allowed, list)
            else ArgSpec(default, low=allowed[0], high=allowed[1])
        )
        good = spec.accepts(default) and all(_same_type(choice, default) for choice in spec.choices)
    except (TypeError, ValueError, IndexError) as error:
        raise DesignError(
            f"{where}: argument {name}: expected (default, [choices]) or (default, (low, high))"
        ) from error
    if not good:
        raise DesignError(f"{where}: argument {name}: the default {default!r} is not {spec.expected()}")
    return spec


def _same_type(value: object, default: Scalar) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return isinstance(value, type(default))


def _parse(path: Path) -> tuple[str, ast.Module]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, ast.parse(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DesignError(f"{path}: cannot be read: {error}") from error
    except SyntaxError as error:
        raise DesignError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error


def _declared(node: ast.ClassDef) -> Iterable[tuple[str, ast.expr]]:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
            if name in DECLARATIONS:
                yield name, statement.value


def _text(text: str, node: ast.ClassDef) -> str:
    return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])


def _without_declarations(text: str, node: ast.ClassDef) -> str:
    dropped: set[int] = set()
    for _, value in _declared(node):
        assert value.end_lineno is not None
        dropped.update(range(value.lineno, value.end_lineno + 1))
    lines = enumerate(_text(text, node).splitlines(), node.lineno)
    kept = [line for number, line in lines if number not in dropped]
    # The blank line before the declarations and the one after them now meet.
    return "\n".join(line for i, line in enumerate(kept) if line.strip() or (i + 1 < len(kept) and kept[i + 1].strip()))


def _names(node: ast.AST) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def _needed(module: ast.Module, names: set[str]) -> tuple[str, ...]:
    """One import line per imported name that is used, leaving out those of the base classes."""
    lines: list[str] = []
    for node in module.body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        origin = node.module if isinstance(node, ast.ImportFrom) else None
        if origin is not None and origin.startswith("asiarch_hpc."):
            continue
        for alias in node.names:
            if (alias.asname or alias.name.split(".")[0]) in names:
                renamed = f" as {alias.asname}" if alias.asname else ""
                lines.append(
                    f"from {origin} import {alias.name}{renamed}" if origin else f"import {alias.name}{renamed}"
                )
    return tuple(lines)
