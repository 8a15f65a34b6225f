"""What `asiarch check` reads: every form of a design, the record of a list, and what it says where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.contract import form_of
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.designs.template import TemplateTree, Unit
from asiarch_hpc.errors import AsiarchError, DesignError
from asiarch_hpc.records import GateReport
from jobs.check import Design, _told, read_design

UNIT = """from asiarch_hpc.designs.genesys_base import GAUBase, UnitDecl, gau_test


class Twice(GAUBase):
    def __init__(self, embed_dim, block_loc, kwarg_all, device=None, dtype=None, **kwargs):
        self.factory_kwargs = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, block_loc, kwarg_all)

    def _forward(self, X, **Z):
        return 2 * X, {}


CHILDREN_DECLARATIONS = []


@gau_test
def test_Twice_runs(device=None, dtype=None):
    assert Twice
"""
TREE = TemplateTree("twice", "Twice", {"Twice": Unit(UNIT)})
IMPLEMENTED = {"root": "Twice", "declares": {}, "units": {"Twice": {"code": UNIT, "children": []}}}
ARTEFACT = {"status": "implemented", "implementation": IMPLEMENTED}
MADE = (
    "Half(embed_dim=self.embed_dim, block_loc=self.block_loc, kwarg_all=self.kwarg_all, **self.factory_kwargs, "
    "**self.kwarg_all)"
)
GALLERY = [{"index": 7, "name": "first", "program": "# one"}, {"index": 8, "name": "second", "program": "# two"},
           {"index": 9, "name": "second", "program": "# three"}]  # fmt: skip


def saved(folder: Path, name: str, data: Any) -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_programs_and_composed_blocks_are_taken_as_they_are(tmp_path: Path) -> None:
    for text in ("class DeltaNet: ...\n", compose(seed_tree("gpt")), "no Python at all"):
        assert read_design(saved(tmp_path, "x.py", text)) == Design(text)


def test_a_tree_of_the_library_is_composed(tmp_path: Path) -> None:
    tree = seed_tree("gpt")
    assert read_design(saved(tmp_path, "units.json", tree.to_json())) == Design(compose(tree))


@pytest.mark.parametrize("name", ["unit.py", "units.json", "implementation.json"])
def test_units_as_code_are_composed_with_their_tests(name: str, tmp_path: Path) -> None:
    data = {"unit.py": UNIT, "units.json": TREE.to_json(), "implementation.json": ARTEFACT}[name]
    design = read_design(saved(tmp_path, name, data))
    assert design.source is not None
    assert form_of(design.source) == "tree"
    assert design.findings == ()
    assert "def test_Twice_runs" in design.tests


def test_repairs_are_warnings_and_faults_reject(tmp_path: Path) -> None:
    repaired = read_design(saved(tmp_path, "x.py", UNIT.replace("@gau_test\n", "")))
    assert [(item.code, item.severity) for item in repaired.findings] == [("unit.tests", "warn")]
    faulty = read_design(saved(tmp_path, "x.py", UNIT.replace("return 2 * X, {}", "return None")))
    assert [(item.code, item.severity) for item in faulty.findings] == [("unit.returns", "reject")]
    for design, expected in ((repaired, True), (faulty, False)):
        passed, text = _told(GateReport(passed=True), design, "x.py")
        assert passed == expected
        assert design.findings[0].message in text


def test_units_without_a_program_say_why(tmp_path: Path) -> None:
    lost = UNIT.replace("CHILDREN_DECLARATIONS = []", "CHILDREN_DECLARATIONS = [UnitDecl(unitname='Half')]")
    lost = lost.replace("        return 2", "        X, Z = self.half(X, **Z)\n        return 2").replace(
        "kwarg_all)\n\n", "kwarg_all)\n        self.half = Half()\n\n"
    )
    design = read_design(saved(tmp_path, "units.json", TemplateTree("t", "Twice", {"Twice": Unit(lost)}).to_json()))
    assert design.source is None
    assert {item.code for item in design.findings} == {"unit.child_arguments", "unit.children_missing"}


def test_what_composition_alone_finds_is_told(tmp_path: Path) -> None:
    """One name for two values, and for an argument: the names cannot be told apart."""
    top = UNIT.replace("kwarg_all)\n\n", f"kwarg_all)\n        self.half = {MADE}\n\n").replace("2 * X", "GAIN * X")
    top = top.replace("        return", "        X, Z = self.half(X, **Z)\n        return")
    top = top.replace("= []", "= [UnitDecl(unitname='Half')]").replace("\n\nclass", "\nGAIN = 2\n\n\nclass")
    half = UNIT.replace("Twice", "Half").replace("2 * X", "(lambda GAIN: GAIN * X)(GAIN)")
    half = half.replace("\n\nclass", "\nGAIN = 1\n\n\nclass")
    tree = TemplateTree("t", "Twice", {"Twice": Unit(top), "Half": Unit(half)})
    design = read_design(saved(tmp_path, "units.json", tree.to_json()))
    assert design.source is None
    assert [item.code for item in design.findings] == ["unit.compose"]
    assert "GAIN" in design.findings[0].message


def test_a_record_of_a_gallery_is_chosen_by_index_or_name(tmp_path: Path) -> None:
    path = saved(tmp_path, "gallery.json", GALLERY)
    assert read_design(Path(f"{path}#8")) == Design("# two")
    assert read_design(Path(f"{path}#first")) == Design("# one")
    assert read_design(saved(tmp_path, "record.json", GALLERY[0])) == Design("# one")
    assert read_design(saved(tmp_path, "gallery#8", "# a file of this name")) == Design("# a file of this name")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("gallery.json", GALLERY, "holds 3 records.*gallery.json#INDEX.*7, 8, 9"),
        ("gallery.json#3", GALLERY, "0 of them named '3'"),
        ("gallery.json#second", GALLERY, "2 of them named 'second'"),
        ("one.json#3", GALLERY[0], "holds no list of records"),
        ("x.json", "{", "not valid JSON"),
        ("x.json", {"name": "x"}, "no field 'root'"),
        ("x.json", {"program": 3}, "field 'program': found int"),
        ("x.json", {"implementation": None}, "no units yet"),
        ("x.json", {"name": "n", "root": "A", "units": {}}, "root: found 'A'"),
        ("x.py", b"\xff", "cannot be read"),
    ],
)
def test_what_is_no_design_is_refused_with_its_name(name: str, data: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / name.partition("#")[0]
    file.write_bytes(
        data if isinstance(data, bytes) else (data if isinstance(data, str) else json.dumps(data)).encode()
    )
    with pytest.raises(AsiarchError, match=said):
        read_design(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DesignError, match=r"absent.py: cannot be read"):
        read_design(tmp_path / "absent.py")
