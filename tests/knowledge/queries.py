"""The labelled queries: shortcomings as an analyst may state them, and the papers that would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from asiarch_hpc.knowledge.cognition import Entry


@dataclass(frozen=True)
class Query:
    """One query. Retrieval was chosen by the queries of the even numbers; the odd ones were kept back."""

    text: str
    papers: frozenset[str]
    topic: str
    kept_back: bool

    @property
    def symptom(self) -> str:
        """Its first sentence: mostly what was observed, without what is wished for."""
        ends = [self.text.find(end) for end in (". ", "; ", "? ", ": ") if end in self.text]
        return self.text[: min(ends, default=len(self.text)) + 1]


def queries() -> list[Query]:
    """All of them in the order of the file."""
    rows = yaml.safe_load((Path(__file__).with_name("queries.yaml")).read_text(encoding="utf-8"))
    return [
        Query(row["query"].strip(), frozenset(row["papers"]), row["topic"], number % 2 == 1)
        for number, row in enumerate(rows)
    ]


def answerable(entries: Sequence[Entry]) -> list[Query]:
    """Those with at least one of their papers among the entries."""
    held = {entry.paper.id for entry in entries}
    return [query for query in queries() if query.papers & held]
