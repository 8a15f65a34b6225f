"""Verdicts on planted blocks hold when the blocks are moved into random unit trees."""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from asiarch_hpc.gate import report as gate_report
from asiarch_hpc.gate.static import examine
from tests.gate.planted_defects import DEFECTS
from tests.gate.planted_leaks import LEAKS
from tests.gate.planted_sound import SOUND
from tests.gate.toys import Plant, codes
from tests.gate.transplant import accepted_codes, check_tree, places, transplant, tree_source

MOVABLE = {name: plant for name, plant in (LEAKS | DEFECTS).items() if not plant.whole}
TREES = st.integers(0, 9_999)
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # each example takes seconds: the first failure is enough

pytestmark = pytest.mark.slow


@settings(deadline=None, max_examples=20)
@given(TREES, st.randoms(use_true_random=False), st.sampled_from(sorted(MOVABLE | SOUND)))
def test_a_transplanted_design_is_the_tree_s_text_with_the_plant_s(tree: int, rng: random.Random, name: str) -> None:
    source = tree_source(tree)
    assert places(source) >= 2
    moved = transplant(source, (MOVABLE | SOUND)[name], rng.randrange(places(source)))
    assert moved.count("class Planted(") == moved.count("Grafted.of(") == 1
    assert examine(moved) == []


@settings(deadline=None, max_examples=4, phases=UNSHRUNK)
@given(TREES, st.randoms(use_true_random=False), st.sampled_from(sorted(MOVABLE)))
def test_defects_are_caught_in_random_trees(tree: int, rng: random.Random, name: str) -> None:
    source = tree_source(tree)
    report = check(transplant(source, MOVABLE[name], rng.randrange(places(source))), MOVABLE[name])
    assert codes(report) & accepted_codes(MOVABLE[name]), gate_report.to_text(report)


@settings(deadline=None, max_examples=3, phases=UNSHRUNK)
@given(TREES, st.randoms(use_true_random=False), st.sampled_from(sorted(SOUND)))
def test_sound_blocks_keep_the_verdict_on_their_tree(tree: int, rng: random.Random, name: str) -> None:
    source = tree_source(tree)
    report = check(transplant(source, SOUND[name], rng.randrange(places(source))), SOUND[name])
    assert codes(report) == own_codes(tree), gate_report.to_text(report)


@functools.cache
def own_codes(tree: int) -> set[str]:
    return codes(check(tree_source(tree), Plant("y = x")))


def check(source: str, plant: Plant) -> gate_report.GateReport:
    with tempfile.TemporaryDirectory() as folder:
        return check_tree(source, plant, Path(folder))
