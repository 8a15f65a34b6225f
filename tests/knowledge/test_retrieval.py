"""What a query finds: order, limits, and how often it is one of the right papers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.config import EmbeddingConfig
from asiarch_hpc.knowledge.cognition import cognition_base
from asiarch_hpc.knowledge.embedding import embedder_of
from asiarch_hpc.knowledge.retrieval import document, remind
from tests.knowledge.figures import by_document, by_triggers, recall
from tests.knowledge.queries import answerable

BASE = cognition_base()
SOME = BASE[:12]
PLACES = [(entry, number) for entry in SOME for number in range(len(entry.cognitions))]
TFIDF = embedder_of(EmbeddingConfig(), url=None, key="")


class Drawn:
    """Likenesses as they are given."""

    name = "drawn"

    def __init__(self, row: Sequence[float]) -> None:
        self.row = list(row)

    def likeness(self, queries: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        assert len(texts) == len(self.row)
        return [self.row for _ in queries]


ROWS = st.lists(
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, float("nan")])), min_size=len(PLACES), max_size=len(PLACES)
)


@settings(deadline=None)
@given(ROWS, st.integers(0, 20), st.floats(0, 1))
def test_what_is_found_is_the_best_of_each_paper_first(row: list[float], count: int, threshold: float) -> None:
    found = remind("recall fails", SOME, Drawn(row), count=count, threshold=threshold)
    passing = {
        (entry.paper.id, number): value
        for (entry, number), value in zip(PLACES, row, strict=True)
        if value >= threshold
    }
    assert len(found) == min(count, len(passing))
    assert all(passing[item.entry.paper.id, item.number] == item.similarity for item in found)
    assert len({(item.entry.paper.id, item.number) for item in found}) == len(found)
    papers = [item.entry.paper.id for item in found]
    distinct = min(len({paper for paper, _ in passing}), len(found))
    assert len(set(papers[:distinct])) == distinct
    for part in (found[:distinct], found[distinct:]):
        values = [item.similarity for item in part]
        assert values == sorted(values, reverse=True)
    for item in found[:distinct]:
        assert item.similarity == max(value for (paper, _), value in passing.items() if paper == item.entry.paper.id)


def test_nothing_is_found_for_nothing() -> None:
    assert remind(" \n", BASE, TFIDF, count=3, threshold=0.0) == []
    assert remind("recall fails", [], TFIDF, count=3, threshold=0.0) == []
    config = EmbeddingConfig()
    for text in (
        "Preheat the oven and fold the egg whites into the batter.",
        "The disk quota of the user is exceeded.",
    ):
        assert remind(text, BASE, TFIDF, count=config.cognitions, threshold=config.threshold) == []


def test_a_cognition_finds_itself() -> None:
    for entry in BASE[::9]:
        for number in range(len(entry.cognitions)):
            (best,) = remind(document(entry, number), BASE, TFIDF, count=1, threshold=0.0)
            assert (best.entry, best.number) == (entry, number)
            assert best.cognition == entry.cognitions[number]
            assert best.similarity == pytest.approx(1)


def test_the_right_papers_are_found() -> None:
    """The floors lie a little below what tests/knowledge/figures.py measures."""
    asked = answerable(BASE)
    search = by_document(TFIDF, BASE)
    assert recall(asked, search)[1] >= 0.80
    kept_back = [query for query in asked if query.kept_back]
    assert recall(kept_back, search)[1] >= 0.77
    assert recall(kept_back, search)[1] > recall(kept_back, by_triggers(TFIDF, BASE))[1] + 0.1
