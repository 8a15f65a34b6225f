"""Design ids depend on what a program does, not on how it is written or which Python reads it."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.designs.hashing import design_id, normalise, source_sha256
from asiarch_hpc.errors import DesignError

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = '''
import torch

class Mixer(torch.nn.Module):
    """A class."""

    def __init__(self, dim: int = 64, *, gate=True, **kwargs) -> None:
        super().__init__()
        self.rate = 0.5
        self.name = f"mixer {dim:>{8}}"

    def forward(self, x):
        "Doc."
        # a comment
        return x * self.rate + 1 if self.training else x[:, 1:]
'''

PINNED = "800a96d3af1cc30a"


def test_ids_are_pinned_for_ever() -> None:
    assert design_id(PROGRAM) == PINNED
    assert design_id("") == "b5999633d806a442"
    assert source_sha256(b"x = 1\n") == "9e26bf369911c45c243c684147b23fc9e1dcfcf257d299a1c632016a6fcd33f4"


def test_layout_comments_and_docstrings_do_not_count() -> None:
    assert design_id(ast.unparse(ast.parse(PROGRAM))) == PINNED
    stripped = PROGRAM.replace('    """A class."""\n', "").replace('        "Doc."\n', "")
    assert design_id(stripped) == PINNED
    assert design_id(PROGRAM.replace("\n", "\r\n")) == PINNED
    assert design_id("#!/usr/bin/env python\n" + PROGRAM.replace("x * self.rate", "(x   *\\\n self.rate)")) == PINNED


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 'a'", "x = b'a'"),
        ("x = a + b", "x = a - b"),
        ("x = a < b", "x = a <= b"),
        ("x = (a, b)", "x = [a, b]"),
        ("x = {'a': ''}", "x = {'a': 'b'}"),
        ("x = {'a': '', 'b': 'c'}", "x = {'a': 'c', 'b': ''}"),
        ("x = a and ''", "x = a or ''"),
        ("x = f'{a}'", "x = f'{a!r}'"),
        ("x = f'{a:>3}'", "x = f'{a:>4}'"),
        ("x = None", "x: int"),
        ("f(a, b)", "f(a, b=b)"),
        ("f(*a)", "f(a)"),
        ("x = a[1:]", "x = a[:1]"),
        ("x = lambda a, /: a", "x = lambda a: a"),
        ("def f(*, a, b=1): return a", "def f(*, a=1, b): return a"),
        ("x = {**a, 'b': 1}", "x = {'b': 1, **a}"),
        ("from . import a", "from .. import a"),
        ("if a:\n    pass\nelse:\n    b", "if a:\n    b"),
    ],
)
def test_meaning_counts(one: str, other: str) -> None:
    assert design_id(one) != design_id(other)


def test_bodies_without_effect_are_alike() -> None:
    assert normalise("def f():\n    'doc'\n") == normalise("def f():\n    pass\n")
    assert normalise("x = 'kept'") != normalise("x = 'other'")


names = st.sampled_from(["a", "b", "rate", "x"])
constants = st.one_of(st.integers(-5, 5), st.floats(allow_nan=False), st.text(max_size=4), st.booleans()).map(repr)
expressions = st.recursive(
    st.one_of(names, constants),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/%@"), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        st.tuples(names, inner).map(lambda p: f"{p[0]}({p[1]}, key={p[1]})"),
        inner.map(lambda e: f"[{e}, {e}]"),
    ),
    max_leaves=6,
)
statements = st.tuples(names, expressions).map(lambda p: f"{p[0]} = {p[1]}")


@settings(deadline=None, max_examples=60)
@given(st.lists(statements, min_size=1, max_size=4), st.text(alphabet="abc #'", max_size=8))
def test_any_rewriting_that_keeps_the_tree_keeps_the_id(lines: list[str], comment: str) -> None:
    plain = "def f(a, b):\n" + "".join(f"    {line}\n" for line in lines)
    dressed = "def f(a, b):\n    '''doc'''\n" + "".join(f"\n\n    {line}   # {comment}\n" for line in lines)
    assert design_id(plain) == design_id(dressed) == design_id(ast.unparse(ast.parse(plain)))


@settings(deadline=None, max_examples=60)
@given(expressions, expressions)
def test_ids_differ_exactly_where_the_trees_do(one: str, other: str) -> None:
    same = ast.dump(ast.parse(one, mode="eval")) == ast.dump(ast.parse(other, mode="eval"))
    assert (design_id(f"x = {one}") == design_id(f"x = {other}")) == same


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(:\n    pass", r"gate\.py, line 1: .*'def f\(:'"),
        ("x = 1\n  y = 2", r"gate\.py, line 2"),
        ("x = 1\0", "gate\\.py"),
        ("x = '\ud800'", "gate\\.py"),
        ("(" * 5000, "gate\\.py"),
        ("x = " + "-" * 100_000 + "1", "gate\\.py"),
        ("x = 0x" + "f" * 10_000, "gate\\.py"),
    ],
)
def test_text_that_is_no_program_is_refused(source: str, words: str) -> None:
    with pytest.raises(DesignError, match=words):
        design_id(source, where="gate.py")


def test_odd_escapes_are_no_error() -> None:
    assert design_id(r"x = '\d'") == design_id(r"x = '\\d'")


def other_pythons() -> list[str]:
    """Interpreters of other supported minor versions on this machine."""
    found: dict[tuple[int, ...], str] = {}
    for minor in (11, 12, 13, 14):
        if (3, minor) == sys.version_info[:2]:
            continue
        homes = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        for candidate in [str(h) for h in homes] + [shutil.which(f"python3.{minor}") or ""]:
            probe = [candidate, "-c", "import sys; print(sys.version_info[1])"]
            if candidate and subprocess.run(probe, capture_output=True, text=True).stdout.strip() == str(minor):
                found.setdefault((3, minor), candidate)
    return list(found.values())


def test_every_python_gives_the_same_id() -> None:
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other supported Python on this machine")
    files = sorted((ROOT / "asiarch_hpc").rglob("*.py"))
    code = (
        "import sys\nfrom asiarch_hpc.designs.hashing import design_id\n"
        "print(*(design_id(open(f, encoding='utf-8').read()) for f in sys.argv[1:]))\n"
        f"print(design_id({PROGRAM!r}))\n"
    )
    expected = [design_id(f.read_text(encoding="utf-8")) for f in files] + [PINNED]
    for python in pythons:
        command = [python, "-c", code, *map(str, files)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == expected, python


def test_blank_lines_inside_strings_and_blocks_are_kept_apart() -> None:
    text = 'x = """a\n\n\nb"""\n\n\ny = 1\n'
    assert normalise(text) == normalise('x = "a\\n\\n\\nb"\ny = 1\n')
    assert design_id("def f():\n    a\n\n\n    b\n") == design_id("def f():\n    a\n    b\n")
    assert design_id("def f():\n    a\n\n\nb\n") != design_id("def f():\n    a\n    b\n")
    assert normalise("a\n\n\nb\n\n\n\nc") == normalise("a\nb\nc")
    with pytest.raises(DesignError, match="line 4"):
        design_id("a = 1\n\n\nb = (\n")
