"""Reading of ASI-Arch's published files: what is kept, how files are joined, what is refused and how it is named."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.errors import RecordError
from asiarch_hpc.importers import asi_arch
from asiarch_hpc.importers.published import PublishedDesign
from tests.importers.conftest import PROGRAM, gallery_record, save, tree_of, tree_record


def read(path: Path) -> dict[str, PublishedDesign]:
    return {design.key: design for design in asi_arch.read(path).designs}


def test_a_gallery_keeps_everything_but_the_picture(tmp_path: Path) -> None:
    run = asi_arch.read(save(tmp_path / "gallery.json", [gallery_record(7, 3)]))
    (design,) = run.designs
    assert design.source == PROGRAM.format(number=7)
    assert (design.key, design.name, design.parents) == ("7", "delta_net_7", ("3",))
    assert (design.score, design.parameters) == (2.7, 495_730_000)
    assert design.motivation == "Why number 7."
    assert design.curves["340M"].steps == (1.0, 100.0, 200.0)
    assert design.curves["340M"].losses == (11.0, 7.5, 4.3)
    assert design.results == {
        "340M": {"arc_easy": {"value": 0.49}, "lam_ppl": {"value": None}, "average": {"value": 0.39}}
    }
    assert design.metadata == {"index": 7, "name_new": "Net7", "summary": "What it does."}
    assert run.notes == ("fields that were left out: svg_picture",)


def test_a_tree_has_lineage_and_scores_alone(tmp_path: Path) -> None:
    unnamed = tree_record(2, 1)
    del unnamed["name_new"]
    found = read(save(tmp_path / "tree.json", tree_of(tree_record(1, None), unnamed)))
    assert (found["1"].parents, found["2"].parents) == ((), ("1",))
    assert found["2"].source is None
    assert not found["2"].curves
    assert found["2"].metadata == {"index": 2}


def test_a_folder_joins_gallery_and_tree_by_index(folder: Path) -> None:
    save(folder / "notes.json", {"something": "else"})
    run = asi_arch.read(folder)
    found = {design.key: design for design in run.designs}
    assert list(found) == ["1", "2", "3", "4", "5"]
    assert {key for key, design in found.items() if design.source is not None} == {"1", "2", "3"}
    assert math.isnan(found["3"].curves["340M"].losses[-1])
    assert not found["3"].results
    assert [file.name for file in run.files] == ["gallery.json", "tree.json"]
    assert "files of another form that were left out: notes.json" in run.notes


def test_a_digest_is_the_gallery_without_programs(tmp_path: Path) -> None:
    record = gallery_record(7, 3)
    digest = {name: record[name] for name in ("index", "parent", "name", "name_new", "score", "parameters", "summary")}
    digest["train"] = {"header": ["1", "100"], "rows": [["delta_net_7", 11.0, "nan"]]}
    digest["test"] = {"header": ["arc_easy"], "rows": [["delta_net_7", 0.49]]}
    found = read(save(tmp_path / "digest.jsonl", json.dumps(digest) + "\n"))["7"]
    assert found.source is None
    assert found.curves["340M"].losses[0] == 11.0
    assert math.isnan(found.curves["340M"].losses[1])
    assert found.results["340M"] == {"arc_easy": {"value": 0.49}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"index": "7"}, "field 'index': found '7', expected an integer"),
        ({"index": True}, "field 'index': found True"),
        ({"index": -1}, "field 'index': found -1"),
        ({"name": " "}, "field 'name': found ' ', expected a text that is not empty"),
        ({"parent": 1.5}, "field 'parent': found 1.5, expected an index, or null"),
        ({"score": "high"}, "field 'score': found 'high', expected a finite number, or null"),
        ({"score": math.nan}, "field 'score': found nan"),
        ({"parameters": "many"}, "field 'parameters': found 'many', expected a count such as '495.73M'"),
        ({"program": 5}, "field 'program': found 5, expected a text"),
        ({"program": "\ud800"}, "field 'program'"),
        ({"result": []}, r"field 'result': found \[\], expected an object with train and test"),
        ({"result": {"train": ",1,2\nx,3.0"}}, r"field 'train': found rows of \[2\] cells, expected one row: a name"),
        ({"result": {"train": ",1\nx,3.0\ny,4.0"}}, r"field 'train': found rows of \[2, 2\] cells"),
        ({"result": {"train": ",1,1\nx,3.0,4.0"}}, "field 'train': header .*expected a different name"),
        ({"result": {"train": ",first\nx,3.0"}}, "field 'train': header: found 'first', expected a number"),
        ({"result": {"train": ",1\nx,low"}}, "field 'train': loss: found 'low', expected a number"),
        ({"result": {"test": ",boolq\nx,good"}}, "field 'test': boolq: found 'good', expected a number"),
        ({"result": {"test": 4}}, "field 'test': found 4, expected CSV text"),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = save(tmp_path / "gallery.json", [gallery_record(1, None), gallery_record(2, 1) | change])
    with pytest.raises(RecordError, match=rf"gallery\.json, record 2: {expected}"):
        asi_arch.read(path)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    record = tree_record(1, None)
    del record["parent"]
    with pytest.raises(RecordError, match=r"tree\.json, record 1: field 'parent' is missing, expected an index"):
        asi_arch.read(save(tmp_path / "tree.json", tree_of(record)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"index": 1', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no published record"),
        ('{"index": 1}', "no published record"),
        ("[7]", "record 1: found int, expected an object"),
        ('{"total_records": 5, "results": []}', "field 'total_records': found 5, expected 0"),
        ('{"total_records": 0, "results": {}}', "field 'results': found dict, expected a list"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(RecordError, match=expected):
        asi_arch.read(save(tmp_path / "file.json", content))


def test_a_torn_digest_names_its_line(tmp_path: Path) -> None:
    line = json.dumps(tree_record(1, None))
    with pytest.raises(RecordError, match=r"digest\.jsonl, line 3: not valid JSON"):
        asi_arch.read(save(tmp_path / "digest.jsonl", f"{line}\n\n{line[:-9]}"))


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"absent\.json: cannot be read"):
        asi_arch.read(tmp_path / "absent.json")
    with pytest.raises(RecordError, match="no published record"):
        asi_arch.read(tmp_path)


def test_a_repeated_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="record 2: field 'index': 1 stands here twice"):
        asi_arch.read(save(tmp_path / "tree.json", tree_of(tree_record(1, None), tree_record(1, None))))


def test_files_that_contradict_each_other_are_refused(folder: Path) -> None:
    save(folder / "tree.json", tree_of(tree_record(2, 5)))
    with pytest.raises(RecordError, match=r"tree\.json, record 1: field 'parent': found 5, expected 1, which another"):
        asi_arch.read(folder)
    save(folder / "tree.json", tree_of(tree_record(2, 1, score=None)))
    assert read(folder)["2"].score == 2.2


def test_a_program_that_does_not_match_its_hash_is_refused(folder: Path) -> None:
    save(folder / "digest.jsonl", json.dumps(tree_record(2, 1, program_sha256="0" * 64)))
    with pytest.raises(RecordError, match="field 'program_sha256': the program of index 2 hashes to"):
        asi_arch.read(folder)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(deadline=None, max_examples=150)
@given(field=st.sampled_from([*gallery_record(1, None), "train", "test", "total_records", "results"]), value=_JSON)
def test_any_value_in_any_field_is_read_or_refused(field: str, value: Any) -> None:
    record: dict[str, Any] = gallery_record(1, None)
    if field in ("train", "test"):
        record["result"] = record["result"] | {field: value}
    elif field in record:
        record[field] = value
    content: Any = [record]
    if field in ("total_records", "results"):
        content = tree_of(record) | {field: value}
    with tempfile.TemporaryDirectory() as scratch:
        path = save(Path(scratch) / "file.json", content)
        with contextlib.suppress(RecordError):
            assert len(asi_arch.read(path).designs) == 1


def test_the_published_tree(published: Callable[[str], Path]) -> None:
    found = read(published("asi_arch/tree.json"))
    assert len(found) == 1772
    assert [key for key, design in found.items() if not design.parents] == ["1"]
    assert all(set(design.parents) <= set(found) for design in found.values())


def test_the_published_digest(published: Callable[[str], Path]) -> None:
    found = read(published("asi_arch/106_metrics.jsonl"))
    assert len(found) == 106
    broken = {key for key, d in found.items() if any(math.isnan(loss) for loss in d.curves["340M"].losses)}
    assert [found[key].metadata["name_new"] for key in broken] == ["SparseTempGateNet"]
    assert all(len(design.curves["340M"].losses) == 21 for design in found.values())
    assert all(design.results["340M"]["average"]["value"] for design in found.values())
    assert all(400e6 < (design.parameters or 0) < 820e6 for design in found.values())
