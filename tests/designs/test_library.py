"""The library is read from text; every declaration agrees with the class beside it."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module

import pytest

from asiarch_hpc.designs import units as units_package
from asiarch_hpc.designs.library import KINDS, UNITS, ArgSpec, foundation, least_heights, library, read_library
from asiarch_hpc.errors import DesignError

UNIT = '''
class {name}(Unit):
    """Does nothing."""

    KIND = {kind}
    ARGUMENTS = {arguments}
'''


def test_there_are_enough_units_of_every_kind():
    kinds = [spec.kind for spec in library().values()]
    real = [name for name in library() if not name.startswith("No")]
    assert len(real) >= 45
    assert all(kinds.count(kind) >= 3 for kind in KINDS)
    assert kinds.count("mixer") >= 16


def test_every_unit_can_be_part_of_a_finite_tree():
    assert set(least_heights(library())) == set(library())
    assert least_heights(library())["RMSNorm"] == 1


@pytest.mark.parametrize("name", list(library()))
def test_declarations_agree_with_the_class(name):
    spec = library()[name]
    module = next(
        module
        for path in sorted(UNITS.glob("*.py"))
        if hasattr(module := import_module(f"{units_package.__name__}.{path.stem}"), name)
    )
    options = set(inspect.signature(getattr(module, name).setup).parameters) - {"self", "args", "options"}
    assert options - {"source_dim"} == set(spec.children) | set(spec.args)
    assert len(spec.summary) <= 120
    assert spec.summary.endswith(".")
    assert "KIND" in spec.source
    assert not any(word in spec.code for word in ("KIND", "CHILDREN", "ARGUMENTS"))
    ast.parse(spec.code)


def test_reading_the_library_loads_no_torch():
    code = (
        "import sys; from asiarch_hpc.designs import compose, library, seeds, tree\n"
        "compose.compose(seeds.seed_tree('gpt')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_foundation_holds_the_base_classes():
    assert "class Unit(nn.Module)" in foundation().code
    assert "from torch import nn" in foundation().imports


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (ArgSpec(4, choices=(2, 4)), [2, 4], [3, 2.0, "4", True, None]),
        (ArgSpec(1, choices=(0, 1)), [0, 1], [True, False, 1.0]),
        (ArgSpec(1, low=0, high=4), [0, 4], [True, 5, 2.5]),
        (ArgSpec(2.0, choices=(1.0, 2.0)), [1.0, 2, 2.0], [3.0, "1.0", float("nan")]),
        (ArgSpec(0.5, low=0.0, high=1.0), [0, 0.3, 1.0], [-0.1, 1.1, float("nan"), float("inf"), "0.5"]),
        (ArgSpec("a", choices=("a", "b")), ["a", "b"], ["c", 1]),
        (ArgSpec(True, choices=(True, False)), [True, False], [1, 0, "True"]),
    ],
)
def test_arguments_accept_only_values_of_their_type_and_range(spec, good, bad):
    assert all(spec.accepts(value) for value in good)
    assert not any(spec.accepts(value) for value in bad)


def test_a_whole_number_resolves_to_the_type_of_the_default():
    assert repr(ArgSpec(2.0, choices=(1.0, 2.0)).resolve(1)) == "1.0"
    assert ArgSpec(4, choices=(2, 4)).resolve(None) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no unit classes found"),
        ("class A(", r"bad\.py:1: not valid Python"),
        (UNIT.format(name="A", kind="'wheel'", arguments="{}"), "unknown kind 'wheel'; expected one of block, stack"),
        (UNIT.format(name="A", kind="str(1)", arguments="{}"), r"bad\.py:2: unit A: KIND must be a literal"),
        (UNIT.format(name="A", kind="'gate'", arguments="{'n': 3}"), r"argument n: expected \(default, \[choices\]\)"),
        (
            UNIT.format(name="A", kind="'gate'", arguments="{'n': (3, [1])}"),
            "argument n: the default 3 is not one of 1",
        ),
        (UNIT.format(name="A", kind="'gate'", arguments="{'n': (3, [3, 'x'])}"), "argument n: the default 3 is not"),
        (UNIT.format(name="A", kind="'gate'", arguments="{}") * 2, r"bad\.py:8: unit A exists already"),
        ("class A(Unit):\n    KIND = 'gate'\n", "no docstring"),
    ],
)
def test_a_bad_unit_file_is_refused_with_file_and_line(tmp_path, text, message):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(DesignError, match=message):
        read_library(tmp_path)
