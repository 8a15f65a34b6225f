"""Reminding an agent of what the literature knows about the shortcomings of a design (ASI-Arch section 3.4).

A cognition is found by one document that holds its triggers, its lesson and what was wrong before it. Triggers alone
find far less: an analysis rarely hits upon the few words of a trigger (tests/knowledge/figures.py has the numbers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from asiarch_hpc.knowledge.cognition import Cognition, Entry
from asiarch_hpc.knowledge.embedding import Embedder


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A cognition that was found: `entry.cognitions[number]`."""

    entry: Entry
    number: int
    similarity: float

    @property
    def cognition(self) -> Cognition:
        return self.entry.cognitions[self.number]


def remind(
    shortcomings: str, entries: Sequence[Entry], embedder: Embedder, *, count: int, threshold: float
) -> list[Found]:
    """At most `count` cognitions of at least the threshold's similarity, of different papers as far as they go.

    The best cognition of each paper comes before the second one of any, each part best first; equals keep the order of
    the entries.
    """
    places = [(entry, number) for entry in entries for number in range(len(entry.cognitions))]
    if not shortcomings.strip() or not places or count < 1:
        return []
    row = embedder.likeness([shortcomings], [document(entry, number) for entry, number in places])[0]
    found = [
        Found(entry=entry, number=number, similarity=similarity)
        for (entry, number), similarity in zip(places, row, strict=True)
        if similarity >= threshold and math.isfinite(similarity)
    ]
    found.sort(key=lambda item: -item.similarity)
    first: dict[str, Found] = {}
    for item in found:
        first.setdefault(item.entry.paper.id, item)
    chosen = list(first.values())
    return (chosen + [item for item in found if first[item.entry.paper.id] is not item])[:count]


def document(entry: Entry, number: int) -> str:
    """What a cognition is found by; symptoms first, for models that read only the beginning."""
    cognition = entry.cognitions[number]
    parts = (
        *cognition.triggers,
        cognition.insight,
        cognition.algorithm,
        cognition.mechanism,
        cognition.conditions,
        cognition.outcomes,
        entry.background.limitations,
    )
    return "\n".join(part.strip() for part in parts)
