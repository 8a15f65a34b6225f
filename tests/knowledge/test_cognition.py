"""The cognition base as it is shipped: valid, broad, without repetitions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from asiarch_hpc.errors import RecordError
from asiarch_hpc.knowledge.cognition import ENTRIES, TOPICS, cognition_base, parse_entry, read_entry
from asiarch_hpc.knowledge.words import stems
from asiarch_hpc.knowledge.writing import entry_text, file_name
from asiarch_hpc.records import to_json
from tests.knowledge.queries import answerable, queries

PAPERS = 120
BASE = cognition_base()
FILES = sorted(ENTRIES.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_a_valid_entry(path: Path) -> None:
    assert path.suffix == ".yaml"
    entry = read_entry(path)
    assert parse_entry(entry_text(entry), source="again") == entry
    triggers = [tuple(stems(text)) for c in entry.cognitions for text in c.triggers]
    assert len(set(triggers)) == len(triggers), "two triggers say the same"
    assert all(triggers), "a trigger without a telling word"


def test_the_base_is_large_and_covers_every_topic() -> None:
    assert len(BASE) >= PAPERS
    assert len(BASE) == len(FILES)
    topics = Counter(c.topic for entry in BASE for c in entry.cognitions)
    assert set(topics) == set(TOPICS)
    assert min(topics.values()) >= 3, topics


def test_nothing_is_there_twice() -> None:
    for name, values in {
        "id": [entry.paper.id for entry in BASE],
        "title": [" ".join(stems(entry.paper.title)) for entry in BASE],
        "insight": [" ".join(stems(c.insight)) for entry in BASE for c in entry.cognitions],
    }.items():
        assert [value for value, count in Counter(values).items() if count > 1] == [], name


def test_arxiv_numbers_agree_with_the_years() -> None:
    for entry in BASE:
        if entry.paper.id[0].isdigit():
            assert -1 <= entry.paper.year - (2000 + int(entry.paper.id[:2])) <= 2, entry.paper


def test_the_queries_are_usable() -> None:
    asked = queries()
    assert len({query.text for query in asked}) == len(asked)
    assert all(query.papers and query.topic in TOPICS for query in asked)
    assert len(answerable(BASE)) >= 0.9 * len(asked)  # those of papers that are not in the base are not counted


GOOD = to_json(BASE[0])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"paper": {**GOOD["paper"], "id": "Not An Id"}}, "paper.id"),
        ({"paper": {**GOOD["paper"], "year": 24}}, "paper.year"),
        ({"paper": {**GOOD["paper"], "title": "  "}}, "paper.title is empty"),
        ({"paper": {**GOOD["paper"], "venue": "?"}}, "unknown fields"),
        ({"background": {**GOOD["background"], "concepts": {"one": "alone"}}}, "background.concepts"),
        ({"cognitions": []}, "cognitions: found 0"),
        ({"cognitions": [{**GOOD["cognitions"][0], "topic": "magic"}]}, "topic 'magic'"),
        ({"cognitions": [{**GOOD["cognitions"][0], "triggers": ["just one"]}]}, "triggers: found 1"),
        ({"cognitions": [{**GOOD["cognitions"][0], "mechanism": ""}]}, "mechanism is empty"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(RecordError, match=complaint):
        parse_entry(yaml.safe_dump({**GOOD, **change}), source="test")


def test_a_folder_with_two_entries_of_a_paper_is_refused(tmp_path: Path) -> None:
    text = entry_text(BASE[0])
    for name in ("a", "b"):
        (tmp_path / f"{BASE[0].paper.id}-{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match="two entries of paper"):
        cognition_base(tmp_path)


def test_file_names_are_those_that_reading_expects(tmp_path: Path) -> None:
    named = replace(BASE[0], paper=replace(BASE[0].paper, id="gated-mixer-2024"))
    for entry in (*BASE[:20], named):
        path = tmp_path / file_name(entry)
        path.write_text(entry_text(entry), encoding="utf-8")
        assert read_entry(path) == entry
