"""A small gallery and search tree of ASI-Arch's form, made by hand, and the published files where they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "published"

# Never executed by an import: it would say so.
PROGRAM = '''# a comment that stays, and a line end of another system\r
raise SystemExit("an import runs no program")


class DeltaNet:
    """Layer {number}: é."""

    gain = {number}
'''
TRAIN = ",1,100,200\n{name},11.0,7.5,{last}"
TEST = ",arc_easy,lam_ppl,average\n{name},0.49,nan,0.39"


def gallery_record(number: int, parent: int | None, **changes: Any) -> dict[str, Any]:
    """One record of a gallery; `changes` replace fields."""
    name = f"delta_net_{number}"
    return {
        "name": name,
        "result": {"train": TRAIN.format(name=name, last=5.0 - number / 10), "test": TEST.format(name=name)},
        "program": PROGRAM.format(number=number),
        "motivation": f"Why number {number}.",
        "svg_picture": "<svg/>",
        "index": number,
        "parent": parent,
        "name_new": f"Net{number}",
        "summary": "What it does.",
        "parameters": "495.73M",
        "score": 2.0 + number / 10,
    } | changes


def tree_record(number: int, parent: int | None, **changes: Any) -> dict[str, Any]:
    """One node of a search tree, as `gallery_record` has it."""
    record = gallery_record(number, parent)
    return {name: record[name] for name in ("index", "name", "parent", "score", "name_new")} | changes


def tree_of(*records: dict[str, Any]) -> dict[str, Any]:
    return {"total_records": len(records), "results": list(records)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gallery of three and a tree of five nodes; number 3 diverged, number 4 and 5 have no program."""
    source = tmp_path / "published"
    diverged = {"train": TRAIN.format(name="delta_net_3", last="nan"), "test": ""}
    gallery = [gallery_record(3, 2, result=diverged), gallery_record(1, None), gallery_record(2, 1)]
    parents = {1: None, 2: 1, 3: 2, 4: 2, 5: 1}
    tree = [tree_record(number, parent) for number, parent in parents.items()]
    save(source / "gallery.json", gallery)
    save(source / "tree.json", tree_of(*tree))
    return source


def save(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.fixture(scope="session")
def published() -> Callable[[str], Path]:
    """Gives the path of a published file; the test skips where it is absent."""

    def path(name: str) -> Path:
        if not (found := PUBLISHED / name).exists():
            pytest.skip(f"no published data: ../shared/data/published/{name} is absent")
        return found

    return path
