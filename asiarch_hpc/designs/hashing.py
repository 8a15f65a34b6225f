"""Content addresses of designs: what is hashed is the syntax tree, not the text.

The identifier names folders for ever, so it must not depend on the Python that computes it. `ast.dump` and
`ast.unparse` both do (fields added in 3.12, empty fields hidden in 3.13, quotes of f-strings). The form written
here lists a node's non-empty fields by name, in the order of the grammar, and repairs the one difference that
remains, empty pieces of f-string formats. It gives the same text on Python 3.11, 3.12 and 3.13 for every file
of the standard library.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from functools import lru_cache

from asiarch_hpc.errors import DesignError

ID_DIGITS = 16

_WITHOUT_MEANING = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


def design_id(source: str, *, where: str = "design") -> str:
    """First 16 hexadecimal digits of the SHA-256 of `normalise(source)`.

    Raises:
        DesignError: see `parse`.
    """
    return hashlib.sha256(normalise(source, where=where).encode()).hexdigest()[:ID_DIGITS]


def source_sha256(data: bytes) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits: it changes with a comment, unlike the design's id."""
    return hashlib.sha256(data).hexdigest()


def normalise(source: str, *, where: str = "design") -> str:
    """The syntax tree of `source` as one line of text, without comments, formatting, docstrings and `pass`.

    Statements that consist of a string alone have no effect wherever they stand, so all of them are dropped.

    Raises:
        DesignError: see `parse`.
    """
    try:
        # Composed designs share most of their text: what stands between two blank lines is parsed once. Pieces
        # that are complete on their own have the same statements alone as together.
        body = "".join([_statements(piece, where) for piece in source.split("\n\n\n")])
    except DesignError:
        body = _statements(source, where)
    return f"(Module body[{body}])" if body else "(Module)"


@lru_cache(maxsize=256)
def _statements(source: str, where: str) -> str:
    tree = parse(source, where=where)
    parts: list[str] = []
    try:
        for statement in tree.body:
            if not _without_effect(statement, tree):
                _write(statement, parts)
    except RecursionError as error:
        raise DesignError(f"{where}: expressions are nested too deeply; split them into statements") from error
    except ValueError as error:  # an integer of more digits than Python prints
        raise DesignError(f"{where}: {error}; write such a constant as an expression") from error
    return "".join(parts)


def parse(source: str, *, where: str = "design") -> ast.Module:
    """Parses Python text; `where` names the file in messages.

    Raises:
        DesignError: the text is not valid Python; the message gives file, line and cause.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape sequence is the author's business, not ours
            return ast.parse(source, filename=where)
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        text = f" in {error.text.strip()[:80]!r}" if error.text else ""
        raise DesignError(f"{where}{line}: {error.msg}{text}; expected valid Python") from error
    except (ValueError, RecursionError, MemoryError) as error:  # NUL or lone surrogates; nesting without end
        raise DesignError(f"{where}: the parser gave up ({error or type(error).__name__})") from error


def _write(node: ast.AST, parts: list[str]) -> None:
    kind = type(node)
    parts.append(f"({kind.__name__}")
    if kind is ast.Constant or kind is ast.MatchSingleton:
        # ASCII, since the set of characters that repr prints grows with each Unicode version
        parts.append(f" {node.value!a})")  # type: ignore[attr-defined]
        return
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or name in _WITHOUT_MEANING:
            continue
        if isinstance(value, list):
            _write_list(name, [item for item in value if not _without_effect(item, node)], parts)
        elif isinstance(value, ast.AST):
            parts.append(f" {name}")
            _write(value, parts)
        else:
            parts.append(f" {name}={value}")
    parts.append(")")


def _write_list(name: str, items: list[ast.AST | str | None], parts: list[str]) -> None:
    if not items:
        return
    parts.append(f" {name}[")
    for item in items:
        if isinstance(item, ast.AST):
            _write(item, parts)
        else:
            parts.append("-" if item is None else f"{item},")
    parts.append("]")


def _without_effect(item: ast.AST | str | None, parent: ast.AST) -> bool:
    if isinstance(item, ast.Expr):
        return isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)
    if isinstance(item, ast.Constant):
        return item.value == "" and isinstance(parent, ast.JoinedStr)  # 3.12 alone puts these beside nested fields
    return isinstance(item, ast.Pass)
