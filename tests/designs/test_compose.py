"""Composition: one self-contained text per tree, the same every time."""

import ast
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.library import library
from asiarch_hpc.designs.seeds import SEEDS, seed_tree
from asiarch_hpc.designs.tree import UnitNode, UnitTree, random_tree, replace_at, walk
from asiarch_hpc.errors import DesignError

ALLOWED = {"math", "typing", "torch", "einops", "kernels"}
REPOSITORY = Path(__file__).resolve().parents[2]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_a_composed_design_is_self_contained(seed):
    tree = random_tree(random.Random(seed), library(), name="random", max_height=6)
    text = compose(tree)
    module = ast.parse(text)
    classes = [node.name for node in module.body if isinstance(node, ast.ClassDef)]
    assert sorted(classes) == sorted({"Unit", "Recipe", "Block"} | {node.unit for _, node in walk(tree.root)})
    imported: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] in ALLOWED for alias in node.names)
            imported |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.module.split(".")[0] in ALLOWED
            imported |= {alias.name for alias in node.names}
    used = {node.id for node in ast.walk(module) if isinstance(node, ast.Name)}
    assert imported <= used, "unused imports"
    assert compose(tree) == text


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_compose_and_compile(name):
    compile(compose(seed_tree(name)), name, "exec")


def test_arguments_left_out_are_written_out():
    tree = seed_tree("delta_net")
    short = replace_at(tree.root, ("mixer", "convolution"), UnitNode("ShortConvolution"))
    text = compose(UnitTree("delta_net", short))
    assert text == compose(tree)
    assert 'width=4,\n                    activation="silu",\n' in text


def test_whole_numbers_for_float_arguments_give_the_same_text():
    args = {"expand": 2, "state": 32}
    tree = seed_tree("mamba2")
    node = tree.root.children["mixer"]
    changed = replace_at(tree.root, ("mixer",), UnitNode(node.unit, args, node.children))
    assert compose(UnitTree("mamba2", changed)) == compose(tree)


def test_the_name_changes_nothing_but_the_first_line():
    tree = seed_tree("gpt")
    one, other = (compose(UnitTree(name, tree.root)).splitlines() for name in ("one", "other"))
    assert one[1:] == other[1:]
    assert one[0] == '"""one: composed from a unit tree."""'


def test_an_invalid_tree_is_refused():
    with pytest.raises(DesignError, match="found no unit of the library"):
        compose(UnitTree("x", UnitNode("Wheel")))


def test_composed_text_is_formatted(tmp_path):
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    trees = [seed_tree(name) for name in SEEDS]
    trees += [random_tree(random.Random(i), library(), name=f"random-{i}", max_height=6) for i in range(12)]
    for tree in trees:
        (tmp_path / f"{tree.name}.py").write_text(compose(tree))
    config = ["--config", str(REPOSITORY / "pyproject.toml"), "--no-cache"]
    for command in (["format", "--check"], ["check", "--select", "F,E,W,UP,B"]):
        result = subprocess.run([ruff, *command, *config, str(tmp_path)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def test_composing_is_fast():
    trees = [random_tree(random.Random(i), library(), name="random", max_height=6) for i in range(100)]
    start = time.perf_counter()
    for tree in trees:
        compose(tree)
    assert (time.perf_counter() - start) / len(trees) < 5e-3
