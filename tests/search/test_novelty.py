"""Likeness of code, distance of behaviour, and what both and the text say of a pair."""

from __future__ import annotations

import itertools
import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asiarch_hpc.config import NoveltyConfig
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.seeds import SEEDS, seed_program, seed_tree
from asiarch_hpc.errors import DesignError
from asiarch_hpc.search.code_print import CodePrint, code_likeness, code_print, likeness
from asiarch_hpc.search.novelty import (
    PairFinding,
    behaviour_distance,
    closest,
    combine,
    same_behaviour,
)
from tests.gate.rewrites import CONV, EQUAL, LINEAR, VARIANTS, program, renamed

LIMITS = NoveltyConfig()
PROGRAMS = [source for group in EQUAL.values() for source in group]
TREES = [compose(seed_tree(name)) for name in SEEDS]


@pytest.mark.parametrize("source", [*PROGRAMS, seed_program("delta_net"), *TREES])
def test_names_and_order_change_nothing(source: str) -> None:
    assert code_likeness(source, source) == 1
    assert code_likeness(source, renamed(source)) == pytest.approx(1, abs=0.015)


def test_texts_annotations_and_constants_change_nothing() -> None:
    source = program(*LINEAR)
    other = source.replace("class DeltaNet(nn.Module):", 'class DeltaNet(nn.Module):\n    """A text."""')
    other = other.replace("(self, hidden_states,", "(self, hidden_states: torch.Tensor,")
    other = other.replace("1e-5)", "1e-6)").replace("b, l, d = x.shape", "b, l, d = x.shape  # sizes")
    assert source != other
    assert code_likeness(source, other) == pytest.approx(1)


@pytest.mark.parametrize("source", VARIANTS.values(), ids=VARIANTS.keys())
def test_another_mechanism_shows(source: str) -> None:
    nearest = max(code_likeness(source, group[0]) for group in EQUAL.values())
    assert 0.5 < nearest < LIMITS.code_limit


def test_likeness_is_symmetric_and_bounded() -> None:
    prints = [code_print(source) for source in (*PROGRAMS, *TREES, *VARIANTS.values())]
    for a, b in itertools.product(prints, repeat=2):
        assert 0 <= likeness(a, b) <= 1
        assert likeness(a, b) == likeness(b, a)
    assert likeness(code_print(program(*LINEAR)), code_print(program(*CONV))) < 0.5


def test_prints_survive_json() -> None:
    made = code_print(program(*LINEAR))
    text = json.dumps(made.to_json())
    assert CodePrint.from_json(json.loads(text)) == made
    assert len(text) < 20_000
    for wrong in (None, [], [[1], []], [["a"], [1]], [[1.5], [1]]):
        with pytest.raises(DesignError, match="print of code"):
            CodePrint.from_json(wrong)


def test_sources_without_patterns() -> None:
    assert code_likeness("", "") == 1
    assert code_likeness("", program(*LINEAR)) == 0
    with pytest.raises(DesignError, match="valid Python"):
        code_print("def f(:")
    with pytest.raises(DesignError, match="nested too deeply"):
        code_print("x = " + "-" * 900 + "y")


def test_two_thousand_comparisons_take_a_second() -> None:
    one = code_print(seed_program("delta_net"))
    many = [CodePrint.from_json(code_print(source).to_json()) for source in TREES] * 250
    many = [CodePrint(other.patterns, other.counts) for other in many]
    began = time.process_time()
    assert all(likeness(one, other) < 1 for other in many)
    assert time.process_time() - began < 1.5


_READINGS = st.lists(st.lists(st.floats(-9, 9), min_size=4, max_size=4), min_size=2, max_size=2)


@given(_READINGS, _READINGS)
def test_distance_is_symmetric(a: list[list[float]], b: list[list[float]]) -> None:
    assert behaviour_distance(a, b) == behaviour_distance(b, a) >= 0
    assert same_behaviour(a, a, 0.0)
    assert same_behaviour(a, [b[0], a[1]], 0.0)


def test_what_cannot_be_compared_is_far() -> None:
    assert behaviour_distance([[1.0], []], [[1.0, 2.0], []]) == math.inf
    assert behaviour_distance([[1.0]], [[1.0], [1.0]]) == math.inf
    assert behaviour_distance([], []) == math.inf


@pytest.mark.parametrize(
    ("text", "code", "distance", "novelty", "word"),
    [
        (0.0, 0.1, 0.0, "duplicate", "computes the same"),
        (0.0, 1.0, 0.5, "duplicate", "constants"),
        (0.0, 0.99, None, "duplicate", "constants"),
        (0.0, 0.99, 0.5, "suspicious", "code"),
        (0.0, 0.7, None, "suspicious", "code"),
        (0.0, 0.1, 0.5, "suspicious", "computes"),
        (0.9, 0.1, None, "suspicious", "text"),
        (0.9, 0.1, 2.0, "suspicious", "text"),
        (0.1, 0.1, 2.0, "new", "something else"),
        (0.1, 0.1, math.inf, "new", "something else"),
    ],
)
def test_three_signals_are_combined(text: float, code: float, distance: float | None, novelty: str, word: str) -> None:
    found = combine(text=text, code=code, distance=distance, limits=LIMITS)
    assert found.novelty == novelty
    assert word in found.reason


def _finding(text: float, code: float, distance: float | None) -> PairFinding:
    return combine(text=text, code=code, distance=distance, limits=LIMITS)


def test_every_signal_names_some_of_the_closest() -> None:
    findings = [
        _finding(0.0, 0.2, 3.0),
        _finding(0.9, 0.2, None),
        _finding(0.0, 0.9, 3.0),
        _finding(0.0, 0.2, 0.8),
        _finding(0.0, 0.2, 0.7),
        _finding(0.0, 0.3, 0.0),
    ]
    assert closest(findings, 5) == [5, 4, 2, 1, 3]
    assert sorted(closest(findings, 100)) == list(range(6))
    assert closest([], 3) == []
