"""How the text of one unit's file is changed on its way into a composed design, and what of it goes there."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asiarch_hpc.designs.edits import Edits
from asiarch_hpc.designs.hashing import parse
from asiarch_hpc.designs.template import DECLARATIONS, TEMPLATE_NAMES, Function, is_main_guard, is_marked, read_unit
from asiarch_hpc.errors import DesignError

# Packages of kernels for one vendor's GPUs. A unit that tries to import one has a way of its own without it.
OPTIONAL_PACKAGES = frozenset({"causal_conv1d", "flash_attn", "mamba_ssm", "xformers"})


@dataclass(frozen=True)
class Import:
    """One imported name: what it is called here, what it stands for, and the line that imports it."""

    name: str
    target: str
    text: str

    @property
    def is_submodule(self) -> bool:
        """Whether the line makes a submodule known besides binding a name: `import torch.utils.checkpoint`."""
        return self.text == f"import {self.text.split()[-1]}" and "." in self.text


def without_optional(source: str) -> str:
    """The text with each `try` that imports an optional package reduced to its way without the package."""
    try:
        module = parse(source)
    except DesignError:
        return source
    edits = Edits(source)
    for node in module.body:
        if isinstance(node, ast.Try) and len(node.handlers) == 1 and any(map(_is_optional, node.body)):
            body = [edits.text(statement) for statement in node.handlers[0].body]
            edits.put(edits.start(node), edits.end(node), "\n".join(body))
    return edits.apply()


def _is_optional(node: ast.stmt) -> bool:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return any(name.split(".")[0] in OPTIONAL_PACKAGES for name in names)


def with_defaults(source: str, name: str, args: Mapping[str, Any]) -> str:
    """The text with the unit's arguments as defaults of its __init__."""
    unit = read_unit(source, where=f"unit {name}")
    init = unit.init
    if init is None or not args:
        return source
    edits = Edits(source)
    named = init.args.args
    first = len(named) - len(init.args.defaults)
    for position, argument in enumerate(named):
        if argument.arg not in args:
            continue
        value = args[argument.arg]
        if position < first:
            edits.insert(edits.end(argument), f"={value!r}" if argument.annotation is None else f" = {value!r}")
        elif not _equal(init.args.defaults[position - first], value):
            edits.replace(init.args.defaults[position - first], repr(value))
    try:
        repaired = edits.apply()
        read_unit(repaired)
    except DesignError:  # a default before an argument without one; the parent supplies both
        return source
    return repaired


def _equal(default: ast.expr, value: Any) -> bool:
    """Whether a default is this value. JSON has no tuples; None is written for what cannot be read."""
    try:
        own = ast.literal_eval(default)
    except ValueError:
        return value is None
    return bool(own == (tuple(value) if isinstance(own, tuple) and isinstance(value, list) else value))


def with_fitting_heads(source: str) -> str:
    """The text with each number of heads that is a unit's own default made to fit the width first."""
    init = read_unit(source).init
    if init is None:
        return source
    edits = Edits(source)
    body = init.body[1:] if isinstance(init.body[0], ast.Expr) and len(init.body) > 1 else init.body
    pairs = zip(reversed(init.args.args), reversed(init.args.defaults), strict=False)
    counts = {
        arg.arg: node.value for arg, node in pairs if isinstance(node, ast.Constant) and arg.arg.endswith("heads")
    }
    for name, count in reversed(counts.items()):
        if type(count) is int and count > 1 and edits.begins_line(body[0]):
            line = f"{name} = fitting_heads({name}, {count}, embed_dim, kwarg_all)\n{edits.indent(body[0])}"
            edits.insert(edits.start(body[0]), line)
    return edits.apply()


def kept_statements(module: ast.Module) -> tuple[list[ast.stmt], set[str]]:
    """The top-level statements that go into the composed file, and the names that they read.

    Imports are collected elsewhere; declarations, tests, texts and values that nothing reads are left out.
    """
    loose = [node for node in module.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    skipped = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign, ast.AnnAssign)
    kept = [node for node in module.body if not isinstance(node, skipped) and not is_main_guard(node)]
    kept = [node for node in kept if not (isinstance(node, Function) and is_marked(node))]
    while True:
        read = {n.id for node in kept for n in ast.walk(node) if isinstance(n, ast.Name)}
        more = [node for node in loose if node not in kept and read & set(bound_names(node)) - {DECLARATIONS}]
        if not more:
            return [node for node in module.body if node in kept], read
        kept += more


def meanings(module: ast.Module, kept: Sequence[ast.stmt]) -> dict[str, str]:
    """What each name that the kept statements bind stands for: its own statements and all that they depend on."""
    texts: dict[str, list[str]] = {}
    below: dict[str, set[str]] = {}
    for line in imported_names(module):
        texts.setdefault(line.name, []).append(line.target)
    for node in kept:
        read = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        for name in bound_names(node):
            texts.setdefault(name, []).append(ast.unparse(node))
            below.setdefault(name, set()).update(read)
    return {
        name: "\n".join(text for other in _reachable(name, below) for text in texts.get(other, ())) for name in below
    }


def _reachable(name: str, below: Mapping[str, set[str]]) -> list[str]:
    found, todo = {name}, [name]
    while todo:
        new = below.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return sorted(found)


def bound_names(node: ast.stmt) -> list[str]:
    """Names that a top-level statement binds."""
    if isinstance(node, ast.ClassDef | Function):
        return [node.name]
    names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return list(dict.fromkeys(names))


def imported_names(module: ast.Module) -> Iterator[Import]:
    for node in module.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                renamed = f" as {alias.asname}" if alias.asname else ""
                yield Import(name, alias.name if alias.asname else name, f"import {alias.name}{renamed}")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name, target = alias.asname or alias.name, f"{node.module}.{alias.name}"
                renamed = f" as {alias.asname}" if alias.asname else ""
                yield Import(name, target, f"from {node.module} import {alias.name}{renamed}")


def test_parts(source: str) -> list[str]:
    """The unit tests of a file, behind the imports and values that only they read.

    Raises:
        DesignError: the file is not valid Python.
    """
    module = parse(source)
    tests = [node for node in module.body if isinstance(node, Function) and is_marked(node)]
    kept, known = kept_statements(module)
    read = {n.id for node in tests for n in ast.walk(node) if isinstance(n, ast.Name)} - known
    lines = [line for line in imported_names(module) if line.name in read and line.name not in TEMPLATE_NAMES]
    loose = [node for node in module.body if isinstance(node, ast.Assign | ast.AnnAssign) and node not in kept]
    values = [node for node in loose if read & set(bound_names(node)) - {DECLARATIONS}]
    edits = Edits(source)
    return [*(line.text for line in lines), *(edits.lines(node) for node in (*values, *tests))]


def with_other_names(source: str, changes: Mapping[str, str], unit: str) -> str:
    """The text with names at its top level called otherwise.

    Raises:
        DesignError: the name has a second meaning inside the unit.
    """
    module = parse(source)
    edits = Edits(source)
    top = {id(node) for statement in module.body for node in _stores_at_top(statement)}
    for node in ast.walk(module):
        if isinstance(node, ast.arg) and node.arg in changes:
            raise DesignError(_ambiguous(unit, node.arg, node.lineno))
        if isinstance(node, ast.Name) and node.id in changes:
            if not isinstance(node.ctx, ast.Load) and id(node) not in top:
                raise DesignError(_ambiguous(unit, node.id, node.lineno))
            edits.replace(node, changes[node.id])
    for statement in module.body:
        if isinstance(statement, ast.ClassDef | Function) and statement.name in changes:
            head = edits.text(statement)
            words = "class" if isinstance(statement, ast.ClassDef) else "def"
            start = edits.start(statement) + len(head[: head.index(statement.name, len(words))].encode())
            edits.put(start, start + len(statement.name.encode()), changes[statement.name])
    return edits.apply()


def _stores_at_top(statement: ast.stmt) -> Iterator[ast.AST]:
    if not isinstance(statement, ast.ClassDef | Function):
        yield from (node for node in ast.walk(statement) if isinstance(node, ast.Name))


def _ambiguous(unit: str, name: str, line: int) -> str:
    return (
        f"unit {unit}, line {line}: {name} means one thing here and another at the top level of the file, where it "
        "also clashes with another unit; give one of them another name"
    )
