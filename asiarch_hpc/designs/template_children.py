"""The rules of the Genesys template about children: declared, made in __init__ in the fixed form, called with Z."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

from asiarch_hpc.designs.hashing import parse
from asiarch_hpc.designs.template import (
    CHILD_ARGUMENTS,
    DECLARATIONS,
    UnitText,
    constructions,
    declared_children,
    methods,
    unit_classes,
)
from asiarch_hpc.errors import DesignError

Found = Iterator[tuple[str, str]]  # a rule's code, and the message behind the unit's name


def children_of(source: str, known: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The children that a unit makes, in the order of their first construction; () where it cannot be read."""
    try:
        classes = unit_classes(module := parse(source))
    except DesignError:
        return ()
    if len(classes) != 1:
        return ()
    calls = constructions(UnitText(source, module, classes[0]), known | declared_names(module))
    return tuple(dict.fromkeys(call.func.id for call in calls if isinstance(call.func, ast.Name)))


def declared_names(module: ast.Module) -> frozenset[str]:
    """Names of the declared children; none where the declarations cannot be read."""
    try:
        return frozenset(child.name for child in declared_children(module) or ())
    except DesignError:
        return frozenset()


def examine_children(unit: UnitText, known: frozenset[str]) -> Found:
    """Children are declared once, made where they are declared, in the right place, and used."""
    try:
        declared = declared_children(unit.module)
    except DesignError as error:
        yield "unit.declarations", f": {error}"
        return
    names = [child.name for child in declared or ()]
    calls = constructions(unit, known | set(names))
    made = {call.func.id: call.lineno for call in reversed(calls) if isinstance(call.func, ast.Name)}
    if declared is None:
        yield "unit.declarations", f": no {DECLARATIONS}"
    for name, count in Counter(names).items():
        if count > 1:
            yield "unit.declarations", f": child {name} is declared {count} times"
    for name, line in sorted(made.items(), key=lambda item: item[1]):
        if declared is not None and name not in names:
            yield "unit.children_undeclared", f", line {line}: child {name} is made and not declared"
    for name in dict.fromkeys(names):
        if name not in made:
            yield "unit.children_unused", f": child {name} is declared and never made"
    yield from _idle_children(unit, calls)
    yield from _misplaced(unit, calls)


def _idle_children(unit: UnitText, calls: list[ast.Call]) -> Found:
    """Children kept in an attribute that nothing reads; modules can be reached in general ways, too."""
    loaded = {n.attr for n in ast.walk(unit.cls) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    general = {"children", "modules", "named_children", "named_modules", "_modules", "__dict__"}
    texts = {n.value for n in ast.walk(unit.cls) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    if loaded & general or any(isinstance(n, ast.Name) and n.id == "getattr" for n in ast.walk(unit.cls)):
        return
    for attribute, call in child_attributes(unit, calls).items():
        if attribute not in loaded | texts:
            yield "unit.children_unused", f", line {call.lineno}: nothing uses self.{attribute} ({_called(call)})"


def child_attributes(unit: UnitText, calls: list[ast.Call]) -> dict[str, ast.Call]:
    """Attributes to which a child is assigned directly, `self.x = Child(...)`, with the call that makes it."""
    found = {}
    for node in ast.walk(unit.cls):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call) and node.value in calls:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    found[target.attr] = node.value
    return found


def _misplaced(unit: UnitText, calls: list[ast.Call]) -> Found:
    for node in ast.walk(unit.cls):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Sequential":
            for inner in ast.walk(node):
                if inner in calls and isinstance(inner, ast.Call):
                    yield "unit.child_in_sequential", f", line {inner.lineno}: {_called(inner)} stands in nn.Sequential"
    for method in methods(unit.cls):
        if method.name in ("_forward", "forward", "__call__"):
            for inner in ast.walk(method):
                if inner in calls and isinstance(inner, ast.Call):
                    yield "unit.child_in_forward", f", line {inner.lineno}: {_called(inner)} is made in {method.name}"


def examine_child_calls(unit: UnitText, known: frozenset[str]) -> Found:
    """Children are made with the fixed keywords, called with the sequence and Z, and their pair is unpacked."""
    calls = constructions(unit, known | declared_names(unit.module))
    for call in calls:
        if faults := argument_faults(call):
            yield "unit.child_arguments", f", line {call.lineno}: {_called(call)} is made with {', '.join(faults)}"
    attributes = child_attributes(unit, calls)
    for node in ast.walk(unit.cls):
        name = called_child(node, attributes) if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and name is not None:
            sequence = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
            if len(node.args) != 1 or len(sequence) != 1:
                text = f", line {node.lineno}: self.{name} is called with {len(node.args)} values besides Z"
                yield "unit.child_call", text
    for statement, name in dropped_results(unit, attributes):
        yield "unit.child_result", f", line {statement.lineno}: the result of self.{name} is used as if it were Y alone"


def argument_faults(call: ast.Call) -> list[str]:
    """What a child's construction lacks of the fixed form."""
    words = {word.arg for word in call.keywords}
    spread = [ast.unparse(word.value) for word in call.keywords if word.arg is None]
    faults = [f"no {name}=" for name in CHILD_ARGUMENTS if name not in words]
    if not any("factory_kwargs" in text for text in spread) and not {"device", "dtype"} <= words:
        faults.append("no **self.factory_kwargs")
    if not any("kwarg_all" in text or text == "kwargs" for text in spread):
        faults.append("no **self.kwarg_all")
    return faults + (["positional arguments"] if call.args else [])


def called_child(node: ast.Call, attributes: dict[str, ast.Call]) -> str | None:
    """The attribute of a child that a call calls, `self.x(...)`; None for other calls."""
    function = node.func
    if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "self" and function.attr in attributes:
        return function.attr
    return None


def dropped_results(unit: UnitText, attributes: dict[str, ast.Call]) -> Iterator[tuple[ast.Assign, str]]:
    """`y = self.child(X, **Z)` where the next statement that reads y uses it as a tensor: it is a pair, and fails."""
    for node in ast.walk(unit.cls):
        for body in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            for position, statement in enumerate(body if isinstance(body, list) else ()):
                if not (isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)):
                    continue
                name = called_child(statement.value, attributes)
                target = statement.targets[0]
                if name is None or len(statement.targets) != 1 or not isinstance(target, ast.Name):
                    continue
                assert isinstance(body, list)
                if _used_as_tensor(target.id, body[position + 1 :]):
                    yield statement, name


def _used_as_tensor(name: str, following: list[ast.stmt]) -> bool:
    for statement in following:
        loads = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id == name]
        if not loads:
            continue
        parents = {id(child): node for node in ast.walk(statement) for child in ast.iter_child_nodes(node)}
        loads = [node for node in loads if isinstance(node.ctx, ast.Load)]
        return bool(loads) and all(_needs_tensor(node, parents[id(node)]) for node in loads)
    return False


def _needs_tensor(node: ast.Name, parent: ast.AST) -> bool:
    if isinstance(parent, ast.BinOp | ast.UnaryOp):
        return True
    if isinstance(parent, ast.Attribute):
        return parent.attr not in ("count", "index")
    general = ("isinstance", "len", "tuple", "list", "type", "print", "dict", "id", "next", "iter")
    return isinstance(parent, ast.Call) and node in parent.args and ast.unparse(parent.func) not in general


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func)
