"""Reading of units written as code: trees in JSON, declarations, tests, places of syntax nodes."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from template_examples import MIXER, ROOT, example

from asiarch_hpc.designs.edits import Edits
from asiarch_hpc.designs.template import (
    Declaration,
    declared_children,
    is_template,
    read_unit,
    single_unit,
    template_from_json,
    unit_tests,
    written_declarations,
)
from asiarch_hpc.designs.template_compose import compose_template
from asiarch_hpc.errors import DesignError


def test_a_tree_survives_its_json_form() -> None:
    tree = example()
    assert template_from_json(tree.to_json()) == tree
    assert is_template(tree.to_json())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"root": "Roof"}, "root: found 'Roof'"),
        ({"units": []}, "units: found list, expected dict"),
        ({"more": 1}, "unknown field 'more'"),
        ({"units": {"Ladder": {"code": 3}}}, "unit Ladder: code: found int"),
        ({"units": {"Ladder": {"args": {}}}}, "unit Ladder: no field 'code'"),
        ({"units": {"Ladder": {"code": "", "args": {"a": float("nan")}}}}, "unit Ladder: args"),
    ],
)
def test_a_malformed_tree_is_refused_with_its_place(change: dict[str, object], said: str) -> None:
    with pytest.raises(DesignError, match=said):
        template_from_json({**example().to_json(), **change})


def test_trees_of_the_library_are_told_from_units_as_code() -> None:
    assert not is_template({"name": "x", "root": {"unit": "Block"}})
    assert not is_template(["root"])


def test_declarations_are_read_and_written() -> None:
    children = [Declaration("A", 'say "x"', ("X", "m"), ("Y",)), Declaration("B")]
    assert declared_children(ast.parse(written_declarations(children))) == children
    assert declared_children(ast.parse(written_declarations([]))) == []
    assert declared_children(ast.parse("x = 1")) is None
    positional = ast.parse("CHILDREN_DECLARATIONS = [UnitDecl('A', 'r', ['X'], ['Y'])]")
    assert declared_children(positional) == [Declaration("A", "r")]


@pytest.mark.parametrize("value", ["names()", "[UnitDecl(unitname=name)]", "[Other(unitname='A')]", "['A']",
                                   "[UnitDecl(unitname='a b')]", "[UnitDecl()]"])  # fmt: skip
def test_declarations_that_only_running_would_tell_are_refused(value: str) -> None:
    with pytest.raises(DesignError, match="CHILDREN_DECLARATIONS"):
        declared_children(ast.parse(f"CHILDREN_DECLARATIONS = {value}"))


def test_tests_are_named_in_their_order() -> None:
    source = "@gau_test\ndef test_b(): ...\ndef test_c(): ...\n@base.gau_test\ndef test_a(): ..."
    assert unit_tests(source) == ("test_b", "test_a")
    assert unit_tests("def (") == ()


def test_a_unit_alone_is_a_tree() -> None:
    tree = single_unit(MIXER, name="file")
    assert tree is not None
    assert (tree.name, tree.root) == ("file", "Mixer")
    assert single_unit("class A: ...", name="x") is None
    assert single_unit("class (", name="x") is None
    composed = compose_template(
        template_from_json({"name": "n", "root": "Norm", "units": example().to_json()["units"]})
    )
    assert single_unit(composed, name="x") is None, "a composed design of one unit is no unit"


@pytest.mark.parametrize("source", ["x = 1", ROOT + MIXER])
def test_a_file_holds_one_unit(source: str) -> None:
    with pytest.raises(DesignError, match="expected one class derived from GAUBase"):
        read_unit(source)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.sampled_from(["x = 'é\U0001f600'  # ü", "y = (1,\n 2)", "\tz = 3", "", "\f", "'''a\r\nb'''"]), max_size=6
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_an_edit_changes_its_node_alone(lines: list[str], end: str) -> None:
    source = end.join(["é = 0", *(line.strip("\t") for line in lines), "value = old_name; other = value"])
    edits = Edits(source)
    name = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and n.id == "old_name")
    assert edits.text(name) == "old_name"
    assert edits.replace(name, "new")
    assert not edits.replace(name, "again"), "a second change of one place would be lost"
    assert edits.apply() == source.replace("old_name", "new")


def test_reading_units_needs_no_torch() -> None:
    code = (
        "import sys; import asiarch_hpc.designs.template_compose, asiarch_hpc.designs.template_repair, "
        "asiarch_hpc.importers.genesys; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
