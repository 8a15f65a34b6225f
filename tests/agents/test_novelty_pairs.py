"""The labelled collection: behaviour finds what is one function, and no signal refuses what is new."""

from __future__ import annotations

import itertools

import pytest
import torch

from asiarch_hpc.config import NoveltyConfig
from asiarch_hpc.gate.behaviour import print_here
from asiarch_hpc.search.novelty import BehaviourPrint, same_behaviour
from tests.agents.novelty_figures import (
    IDEAS,
    KINDS,
    Pair,
    first_places,
    pairs_of,
    precision_recall,
    prints_of,
    signals,
    source,
)

pytestmark = pytest.mark.slow
LIMITS = NoveltyConfig()
SAME = ("base", "renamed", "rewritten")
MARGIN = 2  # pairs that a change may lose
REWORDED = 23  # asked about, of 30
OTHERS = 0.13  # share of pairs of different ideas that are asked about
Prints = dict[tuple[str, str], BehaviourPrint | None]


@pytest.fixture(scope="module")
def prints() -> Prints:
    torch.set_num_threads(1)
    return prints_of(print_here)


@pytest.fixture(scope="module")
def pairs(prints: Prints) -> list[Pair]:
    return pairs_of(prints, LIMITS)


def test_the_collection_is_whole() -> None:
    assert len(IDEAS) >= 28
    assert len({source(idea, kind) for idea in IDEAS for kind in ("base", *KINDS)}) == 5 * len(IDEAS)


@pytest.mark.parametrize("factor", [1e-3, 1, 50])
def test_behaviour_says_exactly_what_is_one_function(prints: Prints, factor: float) -> None:
    """The tolerance lies far from both sides."""
    for (a, one), (b, other) in itertools.combinations(prints.items(), 2):
        assert one is not None
        assert other is not None
        expected = a[0] == b[0] and a[1] in SAME and b[1] in SAME
        assert same_behaviour(one, other, factor * LIMITS.behaviour_tolerance) == expected, (a, b)


def test_duplicates_by_all_signals(pairs: list[Pair]) -> None:
    hits, called, real = precision_recall(pairs, signals(LIMITS)["combined: duplicate"])
    assert real == 3 * len(IDEAS)
    assert hits >= 2 * len(IDEAS) - MARGIN
    assert called - hits <= MARGIN


def test_what_is_asked_about(pairs: list[Pair]) -> None:
    says = signals(LIMITS)["combined: duplicate or suspicious"]
    found = {kind: [pair for pair in pairs if pair.kind == kind and says(pair.finding)] for kind in (*KINDS, "other")}
    assert len(found["renamed"]) == len(found["rewritten"]) == len(IDEAS)
    assert len(found["reworded"]) >= REWORDED - MARGIN
    assert len(found["related"]) >= len(IDEAS) - MARGIN
    others = [pair for pair in pairs if pair.kind == "other"]
    assert len(found["other"]) <= OTHERS * len(others)


@pytest.mark.parametrize(("kind", "least"), [("renamed", 30), ("rewritten", 30), ("reworded", 29), ("related", 30)])
def test_the_base_is_among_the_five_closest(pairs: list[Pair], kind: str, least: int) -> None:
    assert first_places(pairs, kind, 5, IDEAS) >= least - MARGIN
