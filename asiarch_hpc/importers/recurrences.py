"""Finds, in the syntax tree of a program, functions that carry a state along the sequence. Nothing is executed."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from asiarch_hpc.designs.hashing import parse

Function = ast.FunctionDef | ast.AsyncFunctionDef
_PRODUCTS = frozenset({"einsum", "matmul", "bmm", "baddbmm", "outer", "mul", "addcmul", "lerp"})
_WALKS = frozenset({"zip", "unbind", "split", "chunk", "enumerate"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A function that looks like a recurrence along the sequence.

    Attributes:
        name: `function`, or `Class.function` of a static method.
        tensors: parameters that every call gives a tensor, in the signature's order.
        optional: parameters that are None by default and that some call sets.
        sizes: parameters that are whole numbers, and so must not change the result.
        unclear: other parameters that some call sets; nothing can be said about a function that has one.
    """

    name: str
    tensors: tuple[str, ...]
    optional: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()


def candidates(source: str) -> tuple[Candidate, ...]:
    """Functions and static methods of a program that carry a state along the sequence, in the order of the text.

    Such a function multiplies what a loop carries, reads the loop's position, takes tensors and nothing of an object.

    Raises:
        DesignError: not valid Python.
    """
    tree = parse(source)
    found = [_candidate(tree, name, function) for name, function in functions(tree)]
    return tuple(candidate for candidate in found if candidate is not None)


def lines_of(source: str) -> list[str]:
    """Lines with their ends, as Python counts them."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", source)


def functions(tree: ast.Module) -> list[tuple[str, Function]]:
    """Module-level functions and static methods that are defined once, with their names in the module."""
    found: list[tuple[str, Function]] = []
    for node in tree.body:
        if isinstance(node, Function):
            found.append((node.name, node))
        elif isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, Function) and any(ast.unparse(d) == "staticmethod" for d in item.decorator_list):
                    found.append((f"{node.name}.{item.name}", item))
    names = [name for name, _ in found]
    return [(name, function) for name, function in found if names.count(name) == 1]


def _candidate(tree: ast.Module, name: str, function: Function) -> Candidate | None:
    """The candidate that a function is, or None where it is none."""
    arguments = function.args
    if arguments.vararg or arguments.kwarg or isinstance(function, ast.AsyncFunctionDef):
        return None
    if not any(_carries(loop) for loop in ast.walk(function) if isinstance(loop, ast.For | ast.While)):
        return None
    kinds: dict[str, list[str]] = {"tensor": [], "optional": [], "size": [], "other": []}
    given = _given(tree, function)
    for argument, default in _parameters(function):
        kind = _kind(argument, default)
        if default is not None and kind != "size" and argument.arg not in given:
            continue  # always at its default
        kinds[kind].append(argument.arg)
    if len(kinds["tensor"]) < 2:
        return None
    tensors, optional, sizes, unclear = (tuple(kinds[kind]) for kind in ("tensor", "optional", "size", "other"))
    return Candidate(name=name, tensors=tensors, optional=optional, sizes=sizes, unclear=unclear)


def _carries(loop: ast.For | ast.While) -> bool:
    """Whether a loop multiplies a value that it carries from turn to turn, and reads where it is."""
    inside = [node for statement in loop.body for node in ast.walk(statement)]
    products: set[str] = set()  # names whose new values hold a product
    uses: dict[str, set[str]] = {}  # names on which the new values of a name depend
    for node in inside:
        if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) or node.value is None:
            continue
        for target in _targets(node):
            own = {target} if isinstance(node, ast.AugAssign) else set()
            uses[target] = uses.get(target, set()) | names_in(node.value) | own
            products |= {target} if _multiplies(node) else set()
    place = names_in(loop.target if isinstance(loop, ast.For) else loop.test)
    place |= {name for name in uses if _reached(name, uses) & place}
    reads = any(isinstance(node, ast.Subscript) and names_in(node.slice) & place for node in inside)
    walks = isinstance(loop, ast.For) and any(_called(node) in _WALKS for node in ast.walk(loop.iter))
    return (reads or walks) and any(_cycle(name, uses) & products for name in uses)


def _cycle(name: str, uses: Mapping[str, set[str]]) -> set[str]:
    """Names on which `name` depends and that depend on it: none unless it depends on itself."""
    return {other for other in _reached(name, uses) if other in uses and name in _reached(other, uses)}


def _reached(name: str, uses: Mapping[str, set[str]]) -> set[str]:
    """Everything that a name is computed from, through the names of one loop."""
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        new = uses.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return reached


def _multiplies(node: ast.AST) -> bool:
    operators = [n.op for n in ast.walk(node) if isinstance(n, ast.BinOp | ast.AugAssign)]
    return any(isinstance(op, ast.Mult | ast.MatMult) for op in operators) or any(
        _called(n) in _PRODUCTS for n in ast.walk(node)
    )


def _called(node: ast.AST) -> str:
    """Last part of the name that a call calls, "" for what is no call."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _targets(node: ast.AST) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    leaves = [leaf for t in targets for leaf in (t.elts if isinstance(t, ast.Tuple | ast.List) else [t])]
    return {leaf.id for leaf in leaves if isinstance(leaf, ast.Name)}


def names_in(node: ast.AST) -> set[str]:
    """All variables that a piece of a program reads or sets."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _parameters(function: Function) -> list[tuple[ast.arg, ast.expr | None]]:
    """Parameters with their defaults."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    free = len(positional) - len(arguments.defaults)
    defaults: list[ast.expr | None] = [*[None] * free, *arguments.defaults, *arguments.kw_defaults]
    return list(zip([*positional, *arguments.kwonlyargs], defaults, strict=True))


def _kind(argument: ast.arg, default: ast.expr | None) -> str:
    """What a parameter receives: "tensor", "optional" (a tensor or None), "size", or "other"."""
    hint = "" if argument.annotation is None else ast.unparse(argument.annotation)
    value = default.value if isinstance(default, ast.Constant) else ...
    if hint == "int" or (not hint and type(value) is int):
        return "size"
    if hint and "Tensor" not in hint:
        return "other"
    if default is None:
        return "tensor"
    return "optional" if value is None else "other"


def _given(tree: ast.Module, function: Function) -> set[str]:
    """Parameters that some call in the program gives, all where a call cannot be read."""
    parameters = [argument.arg for argument, _ in _parameters(function)]
    positional = parameters[: len(parameters) - len(function.args.kwonlyargs)]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node) == function.name]
    places = {id(call.func) for call in calls}
    for node in ast.walk(tree):
        named = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if named == function.name and id(node) not in places:
            return set(parameters)
    given: set[str] = set()
    for call in calls:
        if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
            return set(parameters)
        given |= {*positional[: len(call.args)], *(keyword.arg or "" for keyword in call.keywords)}
    return given
