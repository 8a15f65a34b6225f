"""Reading of Genesys's published files: what is kept, how copies are joined, what is refused, what is untrained."""

from __future__ import annotations

import ast
import contextlib
import copy
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.designs.contract import form_of
from asiarch_hpc.designs.template import declared_children, template_from_json, unit_tests
from asiarch_hpc.designs.template_rules import examine_tree
from asiarch_hpc.errors import RecordError
from asiarch_hpc.importers import genesys
from asiarch_hpc.importers.genesys_units import is_artefact, template_of
from asiarch_hpc.importers.published import PublishedDesign
from asiarch_hpc.importers.untrained import untrained_evidence
from asiarch_hpc.store.layout import RunLayout
from jobs.import_run import write
from tests.importers.conftest import save

# Never executed by an import: it would say so.
CODE = """import torch
from somewhere.else_ import GAUBase, UnitDecl, gau_test


class {name}(GAUBase):
    def __init__(self, embed_dim, block_loc, kwarg_all, device=None, dtype=None, gain=2.0, **kwargs):
        self.factory_kwargs = {{'device': device, 'dtype': dtype}}
        super().__init__(embed_dim, block_loc, kwarg_all)
        {made}

    def _forward(self, X, **Z):
        {called}
        return X, Z


CHILDREN_DECLARATIONS = [UnitDecl(unitname='Old', requirements='', inputs=['X'], outputs=['Y'])]
print("an import runs no program")
"""
CHILD = (
    "self.child = Child(embed_dim=self.embed_dim, block_loc=self.block_loc, kwarg_all=self.kwarg_all, "
    "**self.factory_kwargs, **self.kwarg_all)"
)
UNTRAINED = {
    "lambada_openai": {"perplexity,none": 5.1e7, "acc,none": 0.0, "alias": "lambada"},
    "sciq": {"acc,none": 0.18, "acc_stderr,none": 0.012, "acc_norm,none": 0.2, "acc_norm_stderr,none": 0.0126},
    "arc_easy": {"acc,none": 0.26, "acc_stderr,none": 0.009},
    "cola": {"mcc,none": float("nan"), "mcc_stderr,none": "N/A"},
}
TRAINED = {
    "lambada_openai": {"perplexity,none": 3000.0, "acc,none": 0.1},
    "sciq": {"acc,none": 0.5, "acc_stderr,none": 0.016},
    "arc_easy": {"acc,none": 0.35, "acc_stderr,none": 0.01},
}
RECORD = "_step,train/loss,train/grad_norm,train/global_step\n0,8.5,1.0,15\n1,7.5,nan,20\n2,nan,1.0,25\n3,,,30\n"


def unit(name: str, children: list[str], **changes: Any) -> dict[str, Any]:
    made, called = (CHILD, "X, Z = self.child(X, **Z)") if children else ("pass", "pass")
    code = CODE.format(name=name, made=made, called=called)
    test = f"@gau_test\ndef test_{name}_test_it(device=None,\n    dtype=None):\n    assert True\n"
    spec = json.dumps({"unitname": name, "document": "", "inputs": ["X"], "outputs": ["Y", "extra"]})
    return {"code": code, "args": {"gain": 3.0}, "children": children, "gautests": {"test_it": test}, "spec": spec,
            "desc": None, "rating": 4.5} | changes  # fmt: skip


def artefact(**changes: Any) -> dict[str, Any]:
    units = {"Top": unit("Top", ["Child"]), "Child": unit("Child", [])}
    declares = {"Child": json.dumps({"unitname": "Child", "requirements": "any", "inputs": ["X"], "outputs": ["Y"]})}
    tree = {"root": "Top", "units": units, "declares": declares, "name": "topper", "rating": 4.0} | changes
    return {"implementation": tree, "status": "implemented", "history": []}


def verification(scale: str, results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    report = {"eval_results.json": {"results": results, "config": {"model_num_parameters": 5_000_000}},
              "trainer_state.json": {}} | changes  # fmt: skip
    return {"scale": scale, "verification_report": report}


def design_folder(root: Path, name: str = "topper", **parts: Any) -> Path:
    folder = root / name
    metadata = {"title": "Topper", "acronym": name, "seed_ids": ["gpt2"],
                "sess_snapshot": {"ref_ids": ["paper", "other"], "mode": "Mutate existing design"}}  # fmt: skip
    proposal = {"proposal": "# Why", "abstract": "Short.", "rating": 4.2, "passed": True}
    proposal["costs"] = {"coder": float("nan")}
    save(folder / "metadata.json", parts.get("metadata", metadata))
    save(folder / "proposal.json", parts.get("proposal", proposal))
    save(folder / "implementation.json", parts.get("implementation", artefact()))
    first = verification("14M", UNTRAINED, **{"training_record.csv": RECORD})
    save(folder / "verifications/14M.json", parts.get("verification", first))
    return folder


def line(**changes: Any) -> dict[str, Any]:
    return {"design": "topper", "scale": "14M", "title": "Topper", "mode": "Mutate existing design",
            "seed_ids": ["gpt2"], "ref_ids": ["paper", "other"], "results": UNTRAINED, "n_samples": {},
            "training_record_csv": RECORD} | changes  # fmt: skip


def save_lines(path: Path, *records: dict[str, Any]) -> Path:
    return save(path, "\n".join(json.dumps(record) for record in records) + "\n\n")


def read(path: Path) -> dict[str, PublishedDesign]:
    return {design.key: design for design in genesys.read(path).designs}


def test_a_design_folder_is_read_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = genesys.read(design_folder(tmp_path))
    (design,) = run.designs
    assert (design.key, design.name, design.motivation) == ("topper", "topper", "# Why")
    assert (design.parents, design.references, design.score) == (("gpt2",), ("paper", "other"), None)
    assert design.results["14M"]["lambada_openai"] == {"perplexity,none": 5.1e7, "acc,none": 0.0}
    assert design.results["14M"]["cola"] == {"mcc,none": None, "mcc_stderr,none": None}
    assert design.curves["14M"].steps == (15.0, 20.0, 25.0)
    assert design.curves["14M"].losses[:2] == (8.5, 7.5)
    assert math.isnan(design.curves["14M"].losses[2])
    assert design.marks == ("untrained_evaluation",)
    assert design.metadata["parameters"] == {"14M": 5_000_000}
    assert design.metadata["costs"] == {"coder": None}
    assert (design.metadata["status"], design.metadata["proposal_rating"]) == ("implemented", 4.2)
    assert run.notes == ("1 of 1 evaluations are those of untrained weights",)
    assert sorted(file.name for file in run.files) == [
        "implementation.json", "metadata.json", "proposal.json", "verifications/14M.json",
    ]  # fmt: skip
    assert design.source is not None
    assert form_of(design.source) == "tree"
    assert capsys.readouterr().out == ""


def test_units_get_their_tests_their_values_and_the_children_that_they_make(tmp_path: Path) -> None:
    (design,) = genesys.read(design_folder(tmp_path)).designs
    tree = template_from_json(design.units)
    assert unit_tests(tree.units["Top"].code) == ("test_Top_test_it",)
    assert tree.units["Child"].args == {"gain": 3.0}
    module = ast.parse(tree.units["Top"].code)
    (child,) = declared_children(module) or ()
    assert (child.name, child.requirements, child.outputs) == ("Child", "any", ("Y",))
    assert examine_tree(tree) == []
    assert design.source is not None
    assert "gain=3.0" in design.source


def test_copies_of_a_design_are_joined(tmp_path: Path) -> None:
    design_folder(tmp_path / "one")
    copy = design_folder(tmp_path / "two")
    save(copy / "verifications/31M.json", verification("31M", TRAINED))
    seed = line(design="core:gpt2", seed_ids=None, ref_ids=None, title=None, mode=None)
    save_lines(tmp_path / "more.jsonl", line(), seed)
    found = read(tmp_path)
    assert set(found) == {"topper", "gpt2"}, "seeds bear the name by which others refer to them"
    assert set(found["topper"].results) == {"14M", "31M"}
    assert list(found["topper"].metadata["untrained"]) == ["14M"]
    assert found["gpt2"].parents == ()


def test_copies_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    design_folder(tmp_path / "one")
    design_folder(tmp_path / "two", verification=verification("14M", TRAINED))
    with pytest.raises(RecordError, match=r"two.*14M.json: field 'results: 14M'"):
        genesys.read(tmp_path)


def test_an_artefact_alone_has_its_own_name(tmp_path: Path) -> None:
    found = read(save(tmp_path / "somewhere" / "implementation.json", artefact()))
    assert list(found) == ["topper"]
    assert found["topper"].source is not None
    assert read(save(tmp_path / "tree.json", artefact()["implementation"]))["topper"].units == found["topper"].units


def test_a_design_that_cannot_be_composed_is_kept_with_the_reason(tmp_path: Path) -> None:
    units = {"Top": unit("Top", ["Child"])}
    run = genesys.read(design_folder(tmp_path, implementation={**artefact(units=units), "status": "unfinished"}))
    (design,) = run.designs
    assert (design.source, design.marks) == (None, ("untrained_evaluation", "incomplete"))
    assert "Child" in design.metadata["composition"]
    assert design.units is not None
    assert "without a program: topper" in run.notes


def test_a_proposal_alone_is_a_design_without_program(tmp_path: Path) -> None:
    folder = design_folder(tmp_path)
    (folder / "implementation.json").unlink()
    shutil.rmtree(folder / "verifications")
    (design,) = genesys.read(tmp_path).designs
    assert (design.source, design.units, design.motivation, design.marks) == (None, None, "# Why", ())


def test_an_import_becomes_a_run(tmp_path: Path) -> None:
    design_folder(tmp_path / "data")
    run = genesys.read(tmp_path / "data")
    layout = RunLayout.of(tmp_path / "results", "genesys")
    assert write(layout, run, created="2025-01-01T00:00:00+0000", code="test")
    (stored,) = layout.root.glob("experiments/*/*/published.json")
    assert json.loads(stored.read_text())["marks"] == ["untrained_evaluation", "nan_loss", "orphan"]
    assert (stored.parent / "architecture.py").read_text() == run.designs[0].source


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no JSON": (lambda root: save(root / "implementation.json", "{"), "implementation.json: not valid JSON"),
    "a list": (lambda root: save(root / "implementation.json", []), "implementation.json: found list"),
    "something else": (lambda root: save(root / "other.json", {"a": 1}), r"other.json: found the fields \['a'\]"),
    "an empty folder": (lambda root: root, "nothing that Genesys published"),
    "no file": (lambda root: root / "absent.json", "absent.json: cannot be read"),
    "no acronym": (
        lambda root: design_folder(root, metadata={"title": "x"}),
        "metadata.json: field 'acronym' is missing",
    ),
    "seeds of a wrong type": (
        lambda root: design_folder(root, metadata={"acronym": "x", "seed_ids": [3]}),
        r"field 'seed_ids': found \[3\]",
    ),
    "no root": (
        lambda root: design_folder(root, implementation=artefact(root="Roof")),
        "implementation: field 'root': found 'Roof'",
    ),
    "a unit without code": (
        lambda root: design_folder(root, implementation=artefact(units={"Top": {"children": []}})),
        "units: Top: field 'code' is missing",
    ),
    "a child of a wrong type": (
        lambda root: design_folder(root, implementation=artefact(units={"Top": unit("Top", [1])})),
        "units: Top: field 'children'",
    ),
    "a broken specification": (
        lambda root: design_folder(root, implementation=artefact(declares={"Child": "{"})),
        "declares: Child: not valid JSON",
    ),
    "a NaN argument": (
        lambda root: design_folder(root, implementation=artefact(units={"Top": unit("Top", [], args={"a": math.nan})})),
        "units: Top: field 'args'",
    ),
    "a text for a number": (
        lambda root: save_lines(root / "v.jsonl", line(), line(design="b", results={"sciq": {"acc,none": "high"}})),
        "v.jsonl, record 2: field 'results': sciq: acc,none: found 'high'",
    ),
    "no scale": (lambda root: save_lines(root / "v.jsonl", line(scale="")), "record 1: field 'scale': found ''"),
    "a record without columns": (
        lambda root: save_lines(root / "v.jsonl", line(training_record_csv="a,b\n1,2\n")),
        "record 1: .*expected train/global_step",
    ),
    "a record with words": (
        lambda root: save_lines(root / "v.jsonl", line(training_record_csv="train/loss,train/global_step\nlow,2\n")),
        "record 1: .*row 1: could not convert",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_malformed_is_named_by_file_record_and_field(case: str, tmp_path: Path) -> None:
    make, said = BROKEN[case]
    with pytest.raises(RecordError, match=said):
        genesys.read(make(tmp_path))


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_stands_in_a_field_nothing_but_a_record_error_comes_of_it(data: st.DataObject) -> None:
    files: dict[str, Any] = {"implementation.json": artefact(), "v.jsonl": line()}
    files["verifications/14M.json"] = verification("14M", UNTRAINED)
    name = data.draw(st.sampled_from(sorted(files)))
    place: Any = copy.deepcopy(files[name])  # parts of it are other tests' too
    files[name] = place
    while True:  # walk down to some field and put anything there
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(_JSON)
        break
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(RecordError):
        genesys.read(save(Path(folder) / name, files[name]))


def test_trees_of_other_kinds_are_no_artefacts() -> None:
    assert is_artefact(artefact())
    assert is_artefact(artefact()["implementation"])
    assert not is_artefact({"name": "n", "root": "Top", "units": {}})
    assert not is_artefact([artefact()])
    assert template_of({"implementation": None}, where="x") is None


def choices(sciq: float) -> dict[str, dict[str, float | None]]:
    return {"sciq": {"acc": sciq, "acc_stderr": 0.01}, "arc_easy": {"acc": 0.25, "acc_stderr": 0.01}}


EVIDENCE: dict[str, tuple[dict[str, dict[str, float | None]], bool]] = {
    "as published": ({k: {m: v for m, v in t.items() if isinstance(v, float)} for k, t in UNTRAINED.items()}, True),
    "trained": (TRAINED, False),
    "LAMBADA alone": ({"lambada_openai": {"perplexity": 9.9e5}}, True),
    "LAMBADA of a small trained model": ({"lambada_openai": {"perplexity": 4e5}}, False),
    "NaN perplexity": ({"lambada_openai": {"perplexity": float("nan")}}, True),
    "choices at chance": (choices(0.26), True),
    "choices above chance": (choices(0.4), False),
    "one of the choices": ({"sciq": {"acc": 0.25, "acc_stderr": 0.01}}, False),
    "contradiction": ({"lambada_openai": {"perplexity": 5e7}} | choices(0.4), False),
    "nothing": ({"cola": {"mcc": 0.0}}, False),
    "missing numbers": ({"lambada_openai": {"perplexity": None}}, False),
}


@pytest.mark.parametrize("case", EVIDENCE)
def test_untrained_results_are_told_from_their_numbers(case: str) -> None:
    results, untrained = EVIDENCE[case]
    assert (untrained_evidence(results) is not None) == untrained


def test_the_published_verifications_import(published: Callable[[str], Path], tmp_path: Path) -> None:
    run = genesys.read(published("genesys/verifications.jsonl"))
    designs = {design.key: design for design in run.designs}
    assert len(designs) == 103
    assert sum(len(design.results) for design in run.designs) == 260
    assert sum(len(design.metadata["untrained"]) for design in run.designs) == 260
    assert all(design.marks == ("untrained_evaluation",) for design in run.designs)
    assert sum(len(design.curves) for design in run.designs) == 41
    assert {len(tasks) for design in run.designs for tasks in design.results.values()} == {111, 112}
    unknown = {parent for design in run.designs for parent in design.parents} - set(designs)
    assert unknown == {"s4_mlp", "hierarchicalpositionawarelm"}
    layout = RunLayout.of(tmp_path, "genesys")
    assert write(layout, run, created="2025-01-01T00:00:00+0000", code="test")
    assert len(list(layout.root.glob("experiments/*/*/published.json"))) == 103
