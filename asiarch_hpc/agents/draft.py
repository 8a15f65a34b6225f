"""A proposed design before it is stored, and how a reply becomes one."""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass

from asiarch_hpc.agents.reply import ReplyError, apply_diff
from asiarch_hpc.designs.hashing import design_id
from asiarch_hpc.designs.tree import UnitTree
from asiarch_hpc.errors import DesignError
from asiarch_hpc.records import Form

CLASSES = {"program": "DeltaNet", "tree": "Block"}
DIFF_LINES = 400  # of a difference that a prompt shows


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A design as its author wrote it. `tree` is set where it is an edit of a unit tree."""

    name: str
    motivation: str
    source: str
    form: Form
    tree: UnitTree | None = None

    @property
    def id(self) -> str:
        return design_id(self.source)

    def document(self) -> str:
        """The text of `motivation.md`."""
        return f"# {self.name}\n\n{self.motivation.strip()}\n"


def written_source(source: str, diff: str, base: str) -> str:
    """The source that a reply gives, whole or as a diff against `base`.

    Raises:
        ReplyError: both or neither, a diff that does not apply, or text that is no design.
    """
    if bool(source.strip()) == bool(diff.strip()):
        found = "both `source` and `diff`" if source.strip() else "neither `source` nor `diff`"
        raise ReplyError(f"the reply gives {found}; exactly one of them was expected")
    text = (apply_diff(base, diff) if diff.strip() else source).strip("\n") + "\n"
    try:
        design_id(text)
    except DesignError as error:
        raise ReplyError(f"the source does not parse: {error}") from error
    written_form(text)
    return text


def written_form(source: str) -> Form:
    """Which form a source has.

    Raises:
        ReplyError: none.
    """
    classes = {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    if CLASSES["program"] in classes:
        return "program"
    if CLASSES["tree"] in classes:
        return "tree"
    raise ReplyError(
        f"the source defines the classes {sorted(classes) or 'none'}; expected `class {CLASSES['program']}(nn.Module)` "
        f"or `class {CLASSES['tree']}(nn.Module)` at the top level"
    )


def difference(old: str, new: str) -> str:
    """What changed from one source to another, as a unified diff without headers."""
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=2))[2:]
    if len(lines) > DIFF_LINES:
        lines = [*lines[:DIFF_LINES], f"… {len(lines) - DIFF_LINES} further lines"]
    return "\n".join(lines) or "(nothing)"


def bare(source: str) -> str:
    """A source without comments and docstrings: what it computes, and nothing that it says of itself."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"
