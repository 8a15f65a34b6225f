"""Generations: a function of what was scored, whatever its order."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_examples import BASELINES, REFERENCE_ID, UPPER_ID, baseline_scores, scored

from asiarch_hpc.config import SearchConfig
from asiarch_hpc.errors import EvaluationError, RecordError
from asiarch_hpc.records import Generation, Score, from_json, to_json
from asiarch_hpc.search.pool import build_generation, scored_before

CONFIG = SearchConfig()


def build(scores: list[Score], through: int = 1000, config: SearchConfig = CONFIG) -> Generation:
    return build_generation(1, [*baseline_scores(), *scores], BASELINES, config, through)


def test_generation_zero_holds_the_baselines() -> None:
    found = build_generation(0, [*baseline_scores(), scored("a", 0.9, 0)], BASELINES, CONFIG, 0)
    assert [(e.id, e.role, e.rank) for e in found.entries] == [(UPPER_ID, "baseline", 1), (REFERENCE_ID, "baseline", 2)]
    assert found.scored == tuple(sorted((UPPER_ID, REFERENCE_ID)))
    assert from_json(Generation, to_json_lists(found)) == found


def to_json_lists(record: Generation) -> object:
    import json

    return json.loads(json.dumps(to_json(record)))


def test_ranked_cut_and_marked() -> None:
    found = build([scored(f"{i:016x}", i / 100, i) for i in range(80)])
    assert len(found.entries) == 50
    assert [e.rank for e in found.entries] == list(range(1, 51))
    assert found.entries[0].fitness == 0.79
    assert {e.id for e in found.entries if e.role == "baseline"} == {REFERENCE_ID, UPPER_ID}
    assert len(found.scored) == 82


def test_discarded_and_later_slots_stay_out() -> None:
    found = build([scored("a", 0.9, 0, discarded="leak"), scored("b", 0.8, 7), scored("c", 0.7, 6)], through=7)
    assert [e.id for e in found.entries if e.role == "candidate"] == ["c"]
    assert "a" not in found.scored
    assert scored_before([scored("b", 0.8, 7), scored("c", 0.7, 6)], 7) == ("c",)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from([0.1, 0.2, 0.5, 0.9])), max_size=70, unique_by=lambda t: t[0]
    ),
    st.randoms(use_true_random=False),
)
def test_order_and_repetition_are_irrelevant(places: list[tuple[int, float]], rng: random.Random) -> None:
    scores = [*baseline_scores(), *(scored(f"{slot:016x}", fitness, slot) for slot, fitness in places)]
    first = build_generation(3, scores, BASELINES, CONFIG, 40)
    shuffled = scores * 2
    rng.shuffle(shuffled)
    assert build_generation(3, iter(shuffled), BASELINES[::-1], CONFIG, 40) == first
    assert list(first.entries) == sorted(first.entries, key=lambda e: (-e.fitness, e.id))


def test_unsound_input_is_refused() -> None:
    with pytest.raises(EvaluationError, match="delta_net"):
        build_generation(1, [scored("a", 0.5, 0)], BASELINES, CONFIG, 5)
    with pytest.raises(EvaluationError, match="all"):
        build_generation(1, [scored("a", 0.5, 0)], (), CONFIG, 5)
    with pytest.raises(EvaluationError, match="finite"):
        build([scored("a", math.nan, 0)])
    with pytest.raises(RecordError, match="two different scores"):
        build([scored("a", 0.5, 0), scored("a", 0.6, 0)])
    with pytest.raises(RecordError, match="different formulas"):
        build([scored("a", 0.5, 0, formula="asi_arch/2")])
    with pytest.raises(RecordError, match="no slot and no baseline"):
        build([scored("a", 0.5)])
