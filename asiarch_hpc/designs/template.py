"""Units written as code: the Genesys template (arXiv 2506.20249, appendix B.3), read without running anything.

A unit is one Python file with one class derived from GAUBase:

    class Mixer(GAUBase):
        def __init__(self, embed_dim, block_loc, kwarg_all, device=None, dtype=None, width=4, **kwargs):
            self.factory_kwargs = {"device": device, "dtype": dtype}
            super().__init__(embed_dim, block_loc, kwarg_all)
            self.norm = Norm(embed_dim=self.embed_dim, block_loc=self.block_loc, kwarg_all=self.kwarg_all,
                             **self.factory_kwargs, **self.kwarg_all)

        def _forward(self, X, **Z):
            Y, Z = self.norm(X, **Z)
            return Y, Z

    CHILDREN_DECLARATIONS = [UnitDecl(unitname="Norm", requirements="", inputs=["X"], outputs=["Y"])]

    @gau_test
    def test_Mixer_shape(device=None, dtype=None): ...

A tree names its root and holds its units by name. A unit that several others declare stands in the tree once, and
each of its places gets parameters of its own. `template_rules` examines units and trees, `template_repair` repairs
what can be repaired safely, `template_compose` makes one file of a tree.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asiarch_hpc.designs.hashing import parse
from asiarch_hpc.errors import DesignError

BASE_CLASS = "GAUBase"
DECLARATIONS = "CHILDREN_DECLARATIONS"
DECLARATION_CLASS = "UnitDecl"
TEST_MARK = "gau_test"
TEMPLATE_NAMES = (BASE_CLASS, DECLARATION_CLASS, TEST_MARK)
FIXED_ARGUMENTS = ("embed_dim", "block_loc", "kwarg_all", "device", "dtype")
CHILD_ARGUMENTS = ("embed_dim", "block_loc", "kwarg_all")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Declaration:
    """A child as its parent declares it. Inputs and outputs are names of side values; X and Y are the sequence."""

    name: str
    requirements: str = ""
    inputs: tuple[str, ...] = ("X",)
    outputs: tuple[str, ...] = ("Y",)


@dataclass(frozen=True)
class Unit:
    """A unit's file. `args` are values of its own arguments; those that are left out have the signature's default."""

    code: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TemplateTree:
    """A design as units in code, by name. A declared child that is not among the units is not written yet."""

    name: str
    root: str
    units: Mapping[str, Unit]

    def to_json(self) -> dict[str, Any]:
        """`{"name": …, "root": unit name, "units": {name: {"code": …, "args": {…}}}}`."""
        units = {name: {"code": unit.code, "args": dict(unit.args)} for name, unit in self.units.items()}
        return {"name": self.name, "root": self.root, "units": units}


@dataclass(frozen=True)
class UnitText:
    """A unit's file with the parts that rules, repairs and composition look at."""

    source: str
    module: ast.Module
    cls: ast.ClassDef

    @property
    def init(self) -> Function | None:
        return self.method("__init__")

    def method(self, name: str) -> Function | None:
        """The class's own method of that name."""
        return next((node for node in methods(self.cls) if node.name == name), None)

    def is_super_init(self, node: ast.AST) -> bool:
        """Whether `node` is a call of the base class's __init__."""
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "__init__"):
            return False
        owner = node.func.value
        if isinstance(owner, ast.Call):
            return isinstance(owner.func, ast.Name) and owner.func.id == "super"
        return isinstance(owner, ast.Name) and owner.id == BASE_CLASS


def is_template(data: object) -> bool:
    """Whether JSON has the form of a template tree, as opposed to a tree of the unit library."""
    return isinstance(data, dict) and isinstance(data.get("root"), str) and isinstance(data.get("units"), dict)


def template_from_json(data: Any) -> TemplateTree:
    """Reads the JSON form of a tree; the inverse of `TemplateTree.to_json`. The units' code is not looked at.

    Raises:
        DesignError: a missing or unknown field, a value of a wrong type, or a root that is not among the units.
    """
    _fields(data, "unit tree", {"name": str, "root": str, "units": dict})
    units = {}
    for name, unit in data["units"].items():
        where = f"unit tree: unit {name}"
        _fields(unit, where, {"code": str}, optional={"args": dict})
        try:
            json.dumps(unit.get("args", {}), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DesignError(f"{where}: args: {error}; expected finite numbers, strings, booleans or lists") from error
        units[name] = Unit(code=unit["code"], args=dict(unit.get("args", {})))
    if data["root"] not in units:
        raise DesignError(f"unit tree: root: found {data['root']!r}, expected one of the units {sorted(units)}")
    return TemplateTree(name=data["name"], root=data["root"], units=units)


def single_unit(source: str, *, name: str) -> TemplateTree | None:
    """The tree of one unit's file, None where the file is something else: GAUBase is its own in a composed design."""
    try:
        module = parse(source)
    except DesignError:
        return None
    classes = unit_classes(module)
    if len(classes) != 1 or any(isinstance(node, ast.ClassDef) and node.name == BASE_CLASS for node in module.body):
        return None
    return TemplateTree(name, classes[0].name, {classes[0].name: Unit(source)})


def read_unit(source: str, *, where: str = "unit") -> UnitText:
    """Parses a unit's file.

    Raises:
        DesignError: not valid Python, or not exactly one class at the top level that derives from GAUBase.
    """
    module = parse(source, where=where)
    found = unit_classes(module)
    if len(found) != 1:
        names = ", ".join(node.name for node in found) or "none"
        raise DesignError(f"{where}: found the unit classes {names}, expected one class derived from {BASE_CLASS}")
    return UnitText(source, module, found[0])


def unit_classes(module: ast.Module) -> list[ast.ClassDef]:
    """The classes at the top level that have GAUBase among their bases."""
    return [node for node in module.body if isinstance(node, ast.ClassDef) and BASE_CLASS in base_names(node)]


def base_names(node: ast.ClassDef) -> list[str]:
    """Last parts of the names of a class's bases: `nn.Module` is "Module"."""
    return [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "?") for base in node.bases]


def methods(node: ast.ClassDef) -> Iterator[Function]:
    """The methods that a class defines itself."""
    return (item for item in node.body if isinstance(item, Function))


def declared_children(module: ast.Module) -> list[Declaration] | None:
    """What CHILDREN_DECLARATIONS lists, None where it is missing.

    Raises:
        DesignError: it is no list of `UnitDecl(...)` with literal values, so it cannot be read without running it.
    """
    node = declarations_statement(module)
    if node is None:
        return None
    value = node.value
    if not isinstance(value, ast.List | ast.Tuple):
        raise DesignError(f"line {node.lineno}: {DECLARATIONS} is no list")
    return [_declaration(element) for element in value.elts]


def declarations_statement(module: ast.Module) -> ast.Assign | ast.AnnAssign | None:
    """The last assignment to CHILDREN_DECLARATIONS at the top level."""
    found: ast.Assign | ast.AnnAssign | None = None
    for node in module.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == DECLARATIONS for target in targets):
                found = node
    return found


def written_declarations(children: Sequence[Declaration]) -> str:
    """The statement that declares `children`."""
    if not children:
        return f"{DECLARATIONS} = []"
    lines = [
        f"    {DECLARATION_CLASS}(unitname={child.name!r}, requirements={child.requirements!r}, "
        f"inputs={list(child.inputs)!r}, outputs={list(child.outputs)!r}),\n"
        for child in children
    ]
    return f"{DECLARATIONS} = [\n{''.join(lines)}]"


def constructions(unit: UnitText, known: frozenset[str] = frozenset()) -> list[ast.Call]:
    """Calls in the class that make a child: of a `known` name, or with at least one of a child's fixed keywords."""
    scopes = [*unit.module.body, *ast.walk(unit.cls)]
    local = {node.name for node in scopes if isinstance(node, ast.ClassDef | Function)}
    found = []
    for node in ast.walk(unit.cls):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in local:
            fixed = any(word.arg in ("kwarg_all", "block_loc") for word in node.keywords)
            if fixed or node.func.id in known:
                found.append(node)
    return sorted(found, key=lambda call: (call.lineno, call.col_offset))


def unit_tests(source: str) -> tuple[str, ...]:
    """Names of the functions marked `@gau_test` at the top level, in their order; () where the text does not parse."""
    try:
        return tuple(node.name for node in test_functions(parse(source)))
    except DesignError:
        return ()


def test_functions(module: ast.Module) -> list[Function]:
    """The functions marked `@gau_test` at the top level."""
    return [node for node in module.body if isinstance(node, Function) and is_marked(node)]


def is_marked(node: Function) -> bool:
    """Whether a function has the decorator `@gau_test`."""
    names = (d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "") for d in node.decorator_list)
    return TEST_MARK in names


def is_main_guard(node: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__":`."""
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Compare)
        and {getattr(side, "id", getattr(side, "value", None)) for side in (node.test.left, *node.test.comparators)}
        == {"__name__", "__main__"}
    )


def required_arguments(function: Function) -> list[str]:
    """Arguments without a default, `self` apart."""
    named = [*function.args.posonlyargs, *function.args.args]
    required = [arg.arg for arg in named[: len(named) - len(function.args.defaults)]]
    words = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return [name for name in [*required, *(arg.arg for arg, default in words if default is None)] if name != "self"]


def argument_names(function: Function) -> list[str]:
    """All named arguments, `self` apart."""
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [arg.arg for arg in named if arg.arg != "self"]


def _declaration(node: ast.expr) -> Declaration:
    where = f"line {node.lineno}: {DECLARATIONS}: {ast.unparse(node)[:60]}"
    if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == DECLARATION_CLASS):
        raise DesignError(f"{where} is no {DECLARATION_CLASS}(...)")
    order = ("unitname", "requirements", "inputs", "outputs")
    try:
        values = {name: ast.literal_eval(value) for name, value in zip(order, node.args, strict=False)}
        values |= {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg in order}
        inputs, outputs = (tuple(str(v) for v in values.get(key, [])) for key in ("inputs", "outputs"))
        name = values["unitname"]
    except (ValueError, TypeError, KeyError) as error:
        raise DesignError(f"{where} has no literal unitname, requirements, inputs and outputs") from error
    if not (isinstance(name, str) and name.isidentifier()):
        raise DesignError(f"{where}: unitname {name!r} is no name of a class")
    return Declaration(name, str(values.get("requirements", "")), inputs, outputs)


def _fields(data: Any, where: str, required: Mapping[str, type], *, optional: Mapping[str, type] | None = None) -> None:
    known = {**required, **(optional or {})}
    if not isinstance(data, dict):
        raise DesignError(f"{where}: found {type(data).__name__}, expected an object with {', '.join(required)}")
    for name in required:
        if name not in data:
            raise DesignError(f"{where}: no field {name!r}; found {sorted(data)}")
    for name, value in data.items():
        if name not in known:
            raise DesignError(f"{where}: unknown field {name!r}; expected {', '.join(known)}")
        if not isinstance(value, known[name]):
            raise DesignError(f"{where}: {name}: found {type(value).__name__}, expected {known[name].__name__}")
