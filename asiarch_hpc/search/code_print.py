"""What a design's source is recognised by, whatever its names and its order.

Code is compared by its syntax tree, without the names that the author chose. A name stands for what it is assigned:
an attribute for the call that made it, a local for its expressions, and both for the operations that use them, to a
depth of two. So renaming changes nothing, the order of independent statements and methods next to nothing, and a
projection that is used elsewhere more than a constant.
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from asiarch_hpc.designs.hashing import parse
from asiarch_hpc.errors import DesignError

_HEIGHTS = 3  # levels of the largest patterns
_DEPTH = 2  # of what a name stands for
_ABOVE = 3  # operations above a name that say what it is used for
_FIXED = frozenset({".__init__", ".forward", "forward", "self", "super", "DeltaNet", "Block"})  # of the contract
_REGISTER = frozenset({".register_buffer", ".register_parameter", ".add_module"})
_LAYOUT = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


@dataclass(frozen=True)
class CodePrint:
    """Hashes of the patterns of a source, in order, and how often each occurs; `to_json` and back keep it whole."""

    patterns: tuple[int, ...]
    counts: tuple[int, ...]

    @cached_property
    def weights(self) -> dict[int, float]:
        """Square roots of the counts, by pattern: what is repeated says less each time."""
        return dict(zip(self.patterns, map(math.sqrt, self.counts), strict=True))

    @cached_property
    def length(self) -> float:
        """Euclidean length of the weights."""
        return math.sqrt(sum(self.counts))

    def to_json(self) -> list[list[int]]:
        """Two lists of the same length, patterns and counts."""
        return [list(self.patterns), list(self.counts)]

    @staticmethod
    def from_json(value: Any) -> CodePrint:
        """The inverse of `to_json`.

        Raises:
            DesignError: it is not what `to_json` gives.
        """
        sound = isinstance(value, list) and len(value) == 2 and all(isinstance(part, list) for part in value)
        if not sound or len(value[0]) != len(value[1]) or any(type(item) is not int for part in value for item in part):
            raise DesignError("a print of code has two lists of integers, of the same length; make it anew")
        return CodePrint(tuple(value[0]), tuple(value[1]))


def code_print(source: str) -> CodePrint:
    """The print of a design's source.

    Raises:
        DesignError: it is not valid Python, or nested too deeply.
    """
    tree = parse(source)
    try:
        found = _Patterns(tree).count()
    except RecursionError as error:
        raise DesignError("design: expressions are nested too deeply; split them into statements") from error
    patterns = tuple(sorted(found))
    return CodePrint(patterns, tuple(found[pattern] for pattern in patterns))


def likeness(a: CodePrint, b: CodePrint) -> float:
    """Cosine of the weights, 0 to 1; 1 for equal prints."""
    if a.patterns == b.patterns and a.counts == b.counts:
        return 1.0
    ours, theirs = a.weights, b.weights
    shared = ours.keys() & theirs.keys()
    products = map(operator.mul, map(ours.__getitem__, shared), map(theirs.__getitem__, shared))
    lengths = a.length * b.length
    return min(1.0, math.fsum(products) / lengths) if lengths else 0.0


def code_likeness(a: str, b: str) -> float:
    """As `likeness`, of two sources.

    Raises:
        DesignError: as `code_print`.
    """
    return likeness(code_print(a), code_print(b))


class _Patterns:
    """Counts the patterns of a syntax tree: its subtrees cut off at several heights, once for each depth of names."""

    def __init__(self, tree: ast.Module) -> None:
        _Scopes().visit(tree)
        self._tree = tree
        self._made = _own_names(tree)
        self._names: dict[str, str] = {}
        self._sides: defaultdict[str, list[ast.AST]] = defaultdict(list)
        for name, side in _assignments(tree):
            self._sides[name].append(side)
        self._uses: defaultdict[str, list[list[ast.AST]]] = defaultdict(list)
        self._find_uses(tree, [])

    def count(self) -> Counter[int]:
        """How often each pattern occurs."""
        found: Counter[int] = Counter()
        for depth in range(_DEPTH + 1):
            if depth in (0, _DEPTH):
                for statement in itertools.chain(*_bodies(self._tree)):
                    self._visit(statement, found, depth)
            self._names = {name: self._stand_in(name) for name in self._made}
        return found

    def _stand_in(self, name: str) -> str:
        sides = sorted({self._form(side, _HEIGHTS) for side in self._sides[name]})
        uses = sorted(" ".join(map(self._operation, above)) for above in self._uses[name])
        return f"<{_hashed('|'.join([*sides, '', *uses]))}>"

    def _find_uses(self, node: ast.AST, above: list[ast.AST]) -> None:
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            self._uses[node.id if isinstance(node, ast.Name) else node.attr].append(above[-_ABOVE:])
        above = [] if isinstance(node, ast.stmt) else above
        for child in ast.iter_child_nodes(node):
            self._find_uses(child, [*above, node])

    def _operation(self, node: ast.AST) -> str:
        """What a node does to those below it."""
        return self._form(node.func, 1) if isinstance(node, ast.Call) else self._word(node)

    def _visit(self, node: ast.AST, found: Counter[int], depth: int) -> None:
        lowest = 1 if depth == 0 else _HEIGHTS - 1
        if not isinstance(node, ast.Name | ast.Constant | ast.expr_context | ast.operator | ast.keyword):
            for height in range(lowest, _HEIGHTS + 1):
                found[_hashed(f"{depth}{height}{self._form(node, height)}")] += 1
        for child in _children(node):
            self._visit(child, found, depth)

    def _form(self, node: ast.AST, height: int) -> str:
        """A subtree as text, with `height` levels below its root."""
        word = self._word(node)
        if height == 0 or isinstance(node, ast.Name | ast.Constant):
            return word
        inner = [self._form(child, height - 1) for child in _children(node)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
            inner = sorted(inner)
        return f"({word} {' '.join(inner)})"

    def _word(self, node: ast.AST) -> str:
        kind = type(node).__name__
        if isinstance(node, ast.Constant):
            return _coarse(node.value)
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.Attribute):
            return self._name(node.attr)
        if isinstance(node, ast.keyword):
            return f"{node.arg}="
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            return f"{kind} {self._name(node.name)}"
        if isinstance(node, ast.BinOp | ast.UnaryOp | ast.BoolOp | ast.AugAssign):
            return f"{kind} {type(node.op).__name__}"
        if isinstance(node, ast.Compare):
            return f"{kind} {' '.join(type(sign).__name__ for sign in node.ops)}"
        return kind

    def _name(self, name: str) -> str:
        return self._names.get(name, "<own>") if name in self._made else name


class _Scopes(ast.NodeTransformer):
    """Tells names apart that are the same by chance: an attribute, a local of one function, a local of another.

    Methods and attributes of self get a dot, those of other objects two; locals get the number of their function.
    """

    def __init__(self) -> None:
        self._scopes: list[tuple[int, frozenset[str]]] = []
        self._functions = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if self._scopes and node.name in self._scopes[-1][1]:
            node.name = f"{node.name}:{self._scopes[-1][0]}"
        self._functions += 1
        inner = [item for item in ast.walk(node) if item is not node]
        stored = {item.id for item in inner if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)}
        stored |= {item.arg for item in inner if isinstance(item, ast.arg)}
        stored |= {item.name for item in inner if isinstance(item, ast.FunctionDef)}
        self._scopes.append((self._functions, frozenset(stored - _FIXED)))
        self.generic_visit(node)
        self._scopes.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                item.name = f".{item.name}"
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        owner = isinstance(node.value, ast.Name) and node.value.id == "self"
        node.attr = f".{node.attr}" if owner else f"..{node.attr}"
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        for number, names in reversed(self._scopes):
            if node.id in names:
                node.id = f"{node.id}:{number}"
                break
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        if self._scopes and node.arg in self._scopes[-1][1]:
            node.arg = f"{node.arg}:{self._scopes[-1][0]}"
        return node


def _own_names(tree: ast.Module) -> set[str]:
    """Names that the author chose; the rest are the language's, the libraries' and the contract's."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not node.attr.startswith(".."):
            found.add(node.attr)
        elif (registered := _registered(node)) is not None:
            found.add(registered[0])
    return found - _FIXED


def _registered(node: ast.AST) -> tuple[str, ast.AST] | None:
    """Attribute and value of `self.register_buffer("name", value)` and the like, after `_Scopes`."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) > 1):
        return None
    name = node.args[0]
    if node.func.attr not in _REGISTER or not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
        return None
    return f".{name.value}", node.args[1]


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Names and what they are made from, wherever they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from ((name, node.value) for name in _targets(target))
        elif isinstance(node, ast.For | ast.comprehension):
            yield from ((name, node.iter) for name in _targets(node.target))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from ((node.name, statement) for statement in node.body if not _is_text(statement))
        elif (registered := _registered(node)) is not None:
            yield registered


def _targets(target: ast.AST) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Attribute):
        yield target.attr
    elif isinstance(target, ast.Tuple | ast.List | ast.Starred):
        for item in ast.iter_child_nodes(target):
            yield from _targets(item)


def _bodies(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    """Statements of functions and classes, without definitions, imports, checks and texts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield [statement for statement in node.body if not _says_nothing(statement)]


def _says_nothing(statement: ast.stmt) -> bool:
    skipped = ast.Import | ast.ImportFrom | ast.Assert | ast.Raise | ast.Pass | ast.ClassDef | ast.FunctionDef
    if isinstance(statement, skipped) or _is_text(statement):
        return True
    if isinstance(statement, ast.If) and not statement.orelse:
        return all(_says_nothing(item) for item in statement.body)
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None
    called = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(called, ast.Call) and ast.unparse(called.func) in ("super().__init__", "super()...__init__")


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_comment", "args") and not isinstance(node, ast.Call):
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.stmt) and _says_nothing(item):
                continue
            if isinstance(item, ast.AST) and not isinstance(item, ast.expr_context | ast.operator | ast.cmpop):
                yield item


def _coarse(value: object) -> str:
    """A constant's class. Layouts, as of einsum, keep their form: names become numbers in order of appearance."""
    if isinstance(value, bool) or value is None or value is Ellipsis:
        return repr(value)
    if isinstance(value, int | float):
        if value in (0, 1, 2, -1):
            return str(int(value))
        return "n" if float(value).is_integer() else "x"
    if isinstance(value, str):
        if "->" not in value:
            return f"'{value}'"
        finder = r"[A-Za-z]" if " " not in value.replace(", ", ",").replace(" ->", "->").replace("-> ", "->") else None
        order: dict[str, int] = {}
        pattern = re.compile(finder) if finder else _LAYOUT
        return pattern.sub(lambda match: str(order.setdefault(match.group(), len(order))) + ".", value)
    return type(value).__name__


def _hashed(text: str) -> int:
    return zlib.crc32(text.encode())
