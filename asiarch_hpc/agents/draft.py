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
# A design is shown to other agents, whose prompts must have room for it.
MOTIVATION_CHARACTERS = 3_000
SOURCE_CHARACTERS = 48_000
STRING_CHARACTERS = 40  # of a string in a source that the judge reads


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


def check_extent(motivation: str, source: str) -> None:
    """Raises ReplyError for a design that is too long to be shown to others."""
    for what, text, limit in (
        ("motivation", motivation, MOTIVATION_CHARACTERS),
        ("source", source, SOURCE_CHARACTERS),
    ):
        if len(text) > limit:
            raise ReplyError(f"the {what} has {len(text)} characters, at most {limit} were expected; shorten it")


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
    """A source without comments, docstrings and long strings: what it computes, and nothing that it says of itself."""
    return ast.unparse(ast.fix_missing_locations(_Bare().visit(ast.parse(source)))) + "\n"


class _Bare(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant | ast.JoinedStr):
            return None
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        long = isinstance(node.value, str) and len(node.value) > STRING_CHARACTERS
        return ast.copy_location(ast.Constant("…"), node) if long else node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == [] and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node
