"""From published files to a run folder: lineage, bytes, marks, what is shown, and what is never made of it."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.cli import main
from asiarch_hpc.designs.hashing import design_id
from asiarch_hpc.errors import ConfigError, RecordError, StoreError
from asiarch_hpc.importers.published import Curve, PublishedDesign, PublishedRun, identifier
from asiarch_hpc.records import Experiment, SourceFile
from asiarch_hpc.store.curves import read_curves
from asiarch_hpc.store.experiments import StoredPublished, scan
from asiarch_hpc.store.layout import RunLayout
from jobs import import_run
from jobs.import_run import write
from tests.importers.conftest import PROGRAM, gallery_record, save, tree_of, tree_record


def imported(folder: Path, results: Path, run: str = "asi") -> RunLayout:
    assert main(["import", "asi-arch", str(folder), "--run", run, "--results", str(results)]) == 0
    return RunLayout.of(results, run)


def by_key(layout: RunLayout) -> dict[str, StoredPublished]:
    found = scan(layout, moved=False)
    assert not found.damaged
    assert not found.experiments
    return {stored.published.key: stored for stored in found.published}


def a_run(*designs: PublishedDesign, data: str = "0") -> PublishedRun:
    file = SourceFile(name="made.json", sha256=data * 64, bytes=1)
    return PublishedRun(origin="made-up", version=1, files=(file,), designs=designs)


def written(tmp_path: Path, *designs: PublishedDesign) -> RunLayout:
    layout = RunLayout.of(tmp_path / "results", "made")
    assert write(layout, a_run(*designs), created="2026-01-01T00:00:00+0000", code="test")
    return layout


def test_a_folder_becomes_a_run(folder: Path, tmp_path: Path) -> None:
    layout = imported(folder, tmp_path)
    found = by_key(layout)
    assert set(found) == {"1", "2", "3", "4", "5"}
    ids = {key: stored.record.id for key, stored in found.items()}
    assert {key: stored.record.parents for key, stored in found.items()} == {
        "1": (), "2": (ids["1"],), "3": (ids["2"],), "4": (ids["2"],), "5": (ids["1"],),
    }  # fmt: skip
    assert ids["1"] == design_id(PROGRAM.format(number=1))
    assert ids["4"] == identifier("asi-arch", "4")
    record = found["3"].record
    assert (record.operator, record.proposer, record.role, record.form) == (
        "published", "asi-arch", "published", "program",
    )  # fmt: skip
    assert found["4"].record.form == "none"
    assert found["4"].published.marks == ("no_program",)
    assert found["3"].published.marks == ("nan_loss",)
    run = json.loads(layout.record.read_text())
    assert (run["kind"], run["origin"], run["importer_version"]) == ("imported", "asi-arch", 1)
    assert [file["name"] for file in run["files"]] == ["gallery.json", "tree.json"]


def test_texts_and_numbers_are_stored_as_they_were_published(folder: Path, tmp_path: Path) -> None:
    layout = imported(folder, tmp_path)
    found = by_key(layout)
    place = layout.experiment(found["2"].record.id)
    assert place.architecture.read_bytes() == PROGRAM.format(number=2).encode()
    assert place.motivation.read_text() == "Why number 2.\n"
    curves = read_curves(place.trial("published-340M").curves)
    assert (curves["step"].tolist(), curves["loss"].tolist()) == ([1.0, 100.0, 200.0], [11.0, 7.5, 4.8])
    published = json.loads(place.published.read_text())
    assert published["score"] == 2.2
    assert published["results"]["340M"] == {
        "arc_easy": {"value": 0.49}, "lam_ppl": {"value": None}, "average": {"value": 0.39},
    }  # fmt: skip
    diverged = read_curves(layout.experiment(found["3"].record.id).trial("published-340M").curves)
    assert math.isnan(diverged["loss"][-1])
    bare = layout.experiment(found["4"].record.id)
    assert sorted(path.name for path in bare.root.iterdir()) == ["experiment.json", "published.json"]


def test_nothing_published_becomes_a_score_or_enters_a_pool(folder: Path, tmp_path: Path) -> None:
    layout = imported(folder, tmp_path)
    names = {path.name for path in layout.root.rglob("*")}
    assert not names & {"score.json", "gate.json", "evaluation.json", "trial.json", "pool", "journal.jsonl", "inbox"}
    before = sorted(layout.root.rglob("*"))
    for command in ("tick", "rebuild", "explore"):
        assert main([command, "--run", "asi", "--results", str(tmp_path)]) == 1
    assert sorted(layout.root.rglob("*")) == before


@pytest.mark.parametrize("command", ["tick", "rebuild", "explore"])
def test_commands_that_drive_a_run_say_what_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    imported(folder, tmp_path)
    assert main([command, "--run", "asi", "--results", str(tmp_path)]) == 1
    assert "was imported from asi-arch" in capsys.readouterr().err


def test_status_shows_the_import_as_published(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imported(folder, tmp_path)
    shown = capsys.readouterr().out
    assert main(["status", "--run", "asi", "--results", str(tmp_path)]) == 0
    again = capsys.readouterr().out
    assert shown.endswith(again)
    assert len(shown.splitlines()) <= 15
    for expected in (
        "none of it is scored here or enters a pool",
        "designs: 5, 3 with program, 2 with test results, 3 with training curves (1 of them with NaN)",
        "names: 5 different, 0 repeat another's",
        "lineage: 1 without parent, 2 with children, 0 orphans",
        "published scores: median 2.300, best 2.500 (Net5,",
        "children that score above their parent: 100.0 % of 4",
        "fields that were left out: svg_picture",
    ):
        assert expected in again


def test_the_same_import_changes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = imported(folder, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in layout.root.rglob("*")}
    imported(folder.rename(folder.with_name("elsewhere")), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in layout.root.rglob("*")} == before
    assert "imported before" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("what", ["other data", "no import", "no run"])
def test_another_run_is_not_touched(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    layout = RunLayout.of(tmp_path, "asi")
    if what == "other data":
        imported(folder, tmp_path)
        (folder / "gallery.json").unlink()
    else:
        save(layout.root / ("run.json" if what == "no import" else "mine.txt"), '{"config": {}}')
    before = {path: path.stat().st_mtime_ns for path in layout.root.rglob("*")}
    assert main(["import", "asi-arch", str(folder), "--run", "asi", "--results", str(tmp_path)]) == 1
    assert what in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in layout.root.rglob("*")} == before


def test_a_bad_record_leaves_no_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder / "tree.json", tree_of(tree_record(1, 2), tree_record(2, 1)))
    (folder / "gallery.json").unlink()
    results = tmp_path / "results"
    assert main(["import", "asi-arch", str(folder), "--run", "asi", "--results", str(results)]) == 1
    assert "1 -> 2 -> 1: found a design that is its own ancestor" in capsys.readouterr().err
    assert not results.exists()


def test_a_gallery_alone_keeps_the_names_of_absent_parents(tmp_path: Path) -> None:
    save(tmp_path / "gallery.json", [gallery_record(7, 3), gallery_record(9, 7)])
    found = by_key(imported(tmp_path / "gallery.json", tmp_path / "results"))
    assert found["7"].record.parents == ()
    assert found["7"].published.parents == ("3",)
    assert found["7"].published.marks == ("orphan",)
    assert found["9"].record.parents == (found["7"].record.id,)


def test_ids_do_not_depend_on_the_file(folder: Path, tmp_path: Path) -> None:
    together = by_key(imported(folder, tmp_path, "together"))
    tree = by_key(imported(folder / "tree.json", tmp_path, "tree"))
    gallery = by_key(imported(folder / "gallery.json", tmp_path, "gallery"))
    for key, stored in together.items():
        assert stored.record.id == (gallery if key in gallery else tree)[key].record.id


def test_programs_that_are_equal_or_broken_are_kept_and_marked(tmp_path: Path) -> None:
    texts = {"a": "x = 1\n", "b": "x  =  1  # the same\n", "c": "python\nfrom __future__ import x\n(", "d": "y = 1\n"}
    designs = [PublishedDesign(key=key, name=key, source=text) for key, text in texts.items()]
    layout = written(tmp_path, *designs)
    found = by_key(layout)
    assert {key: stored.published.marks for key, stored in found.items()} == {
        "a": (), "b": ("same_program",), "c": ("no_parse",), "d": (),
    }  # fmt: skip
    for key, stored in found.items():
        assert layout.experiment(stored.record.id).architecture.read_text() == texts[key]


def test_everything_that_an_importer_may_give_is_stored(tmp_path: Path) -> None:
    tree = {"root": "Block", "units": [{"name": "Block", "code": "…"}]}
    design = PublishedDesign(
        key="hiergpt",
        name="HierGPT",
        source="class Block: ...\n",
        units=tree,
        results={"14M": {"blimp": {"acc": 0.5, "acc_stderr": None}}, "31M": {}},
        curves={"14M": Curve(steps=(0.0, 1.0), losses=(9.0, 8.0)), "31M": Curve(steps=(), losses=())},
        marks=("untrained_evaluation",),
        metadata={"rating": 4.5, "costs": {"proposal": [1, 2]}},
    )
    layout = written(tmp_path, design)
    stored = by_key(layout)["hiergpt"]
    assert stored.record.form == "tree"
    assert stored.published.results == design.results
    assert stored.published.metadata == design.metadata
    assert stored.published.trials == ("published-14M", "published-31M")
    assert stored.published.marks == ("untrained_evaluation",)
    assert json.loads(layout.experiment(stored.record.id).units.read_text()) == tree


@pytest.mark.parametrize(
    ("design", "expected"),
    [
        (PublishedDesign(key="a", name="a", metadata={"rating": math.nan}), "'a': .*expected .* JSON without NaN"),
        (
            PublishedDesign(key="a", name="a", curves={"../up": Curve(steps=(), losses=())}),
            r"scale '\.\./up', expected",
        ),
        (PublishedDesign(key="a", name="a", source="\ud800"), "a': .*expected Unicode text"),
        (PublishedDesign(key="b", name="b"), "two designs of key 'b'"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, design: PublishedDesign, expected: str) -> None:
    with pytest.raises(RecordError, match=expected):
        written(tmp_path, PublishedDesign(key="b", name="b"), design)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_import_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = import_run.write_published

    def failing(layout: RunLayout, record: Experiment, *rest: Any, **more: Any) -> bool:
        if record.name == "30":
            raise StoreError(28, "the disk is full")
        return whole(layout, record, *rest, **more)

    monkeypatch.setattr(import_run, "write_published", failing)
    designs = [PublishedDesign(key=str(number), name=str(number)) for number in range(60)]
    with pytest.raises(StoreError, match="the disk is full"):
        written(tmp_path, *designs)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert len(by_key(written(tmp_path, *designs))) == 60


def test_an_unwritable_results_folder_is_named(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "results", "a file")
    with pytest.raises(StoreError, match="a file stands where a folder is expected"):
        written(tmp_path, PublishedDesign(key="a", name="a"))


def test_another_import_under_the_same_name_is_refused(tmp_path: Path) -> None:
    layout = written(tmp_path, PublishedDesign(key="a", name="a"))
    with pytest.raises(ConfigError, match=r"import of other data \(made-up, made\.json\)"):
        write(layout, a_run(PublishedDesign(key="a", name="a"), data="1"), created="", code="")


@pytest.mark.parametrize("damage", ["architecture", "published", "curves", "record"])
def test_damage_is_found_and_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    layout = imported(folder, tmp_path)
    place = layout.experiment(by_key(layout)["2"].record.id)
    if damage == "curves":
        place.trial("published-340M").curves.unlink()
    else:
        path: Path = getattr(place, damage)
        path.write_text(path.read_text()[:-40] + "#")
    assert main(["status", "--run", "asi", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "damaged: " in shown
    assert place.root.name in shown
    assert "designs: 4," in shown
    assert place.root.exists()


@settings(deadline=None, max_examples=15)
@given(data=st.data(), size=st.integers(1, 8))
def test_any_lineage_is_kept(data: st.DataObject, size: int) -> None:
    parents: dict[str, tuple[str, ...]] = {}
    for number in data.draw(st.permutations(range(size))):
        older = st.sampled_from([*parents, "absent"])
        parents[str(number)] = tuple(data.draw(st.lists(older, max_size=2, unique=True)))
    order = data.draw(st.permutations(list(parents)))
    with tempfile.TemporaryDirectory() as scratch:
        layout = RunLayout.of(Path(scratch), "made")
        designs = [PublishedDesign(key=key, name="same", parents=parents[key]) for key in order]
        write(layout, a_run(*designs), created="", code="")
        found = by_key(layout)
    assert {key: stored.published.parents for key, stored in found.items()} == parents
    for key, stored in found.items():
        assert stored.record.parents == tuple(found[p].record.id for p in parents[key] if p != "absent")
        assert ("orphan" in stored.published.marks) == ("absent" in parents[key])


def test_the_published_tree_and_digest_become_a_run(
    published: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = by_key(imported(published("asi_arch/tree.json").parent, tmp_path))
    assert len(found) == 1772
    assert sum(bool(stored.published.trials) for stored in found.values()) == 106
    assert sum("nan_loss" in stored.published.marks for stored in found.values()) == 1
    shown = capsys.readouterr().out
    assert "lineage: 1 without parent, 79 with children, 0 orphans" in shown
    assert "names: 1690 different, 82 repeat another's" in shown
    assert "children that score above their parent: 8.6 % of 1771" in shown
    assert "best 2.742" in shown
