"""Slots, batches and generations under every order of events and every kind of failure."""

import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.config import SearchConfig
from asiarch_hpc.errors import RecordError
from asiarch_hpc.search.population import (
    CLOSED,
    Outcome,
    Population,
    SlotState,
    batch_of,
    begin,
    built,
    element,
    finish,
    generation_of,
    plan,
    slot_limit,
    slots_of,
    through_slot,
)

Fate = Callable[[int, int, int], Outcome]

configs = st.builds(
    lambda designs, batch, cold, overlap, attempts, limit: replace(
        SearchConfig(), designs=designs, batch=batch, cold_start=cold, overlap=overlap, attempts=attempts,
        slot_limit=limit,
    ),
    st.integers(1, 14), st.integers(1, 6), st.integers(0, 16), st.integers(0, 3), st.integers(1, 3),
    st.sampled_from([1.0, 1.5, 2.0]),
)  # fmt: skip


def fate_of(seed: int, success: float) -> Fate:
    """The outcome of a design, fixed by where it is tried and what it was bred from, and by nothing else."""

    def fate(slot: int, attempt: int, generation: int) -> Outcome:
        rng = random.Random(f"{seed} {slot} {attempt} {generation}")
        if rng.random() < success:
            return "scored"
        return rng.choice(["discarded", "failed", "failed"])

    return fate


def play(config: SearchConfig, fate: Fate, rng: random.Random, room: int) -> tuple[Population, list[object]]:
    """Runs a search whose jobs finish in an order that `rng` chooses, with at most `room` of them at once.

    Returns the final population and what each generation was built from.
    """
    state, busy, history = Population(), {}, []
    for _ in range(10_000):
        now = plan(state, config)
        assert plan(state, config) == now
        if now.done:
            assert not now.propose
            assert not busy
            assert now.build_generation is None
            return state, history
        if now.build_generation is not None:
            assert now.build_generation == state.generations
            before = through_slot(now.build_generation, config)
            closed = tuple(sorted((s.slot, s.status, s.experiment) for s in state.slots.values() if s.slot < before))
            assert all(status in CLOSED for _, status, _ in closed)
            history.append((now.build_generation, closed))
            state = built(state, now.build_generation)
            continue
        for slot, attempt, generation in now.propose[: max(0, room - len(busy))]:
            assert slot not in busy
            assert generation == generation_of(batch_of(slot, config), config) < state.generations
            busy[slot] = (attempt, generation)
            state = begin(begin(state, slot, attempt), slot, attempt)
            assert (slot, attempt) not in [p[:2] for p in plan(state, config).propose]
        assert busy, "neither work nor an end: a deadlock"
        slot = rng.choice(sorted(busy))
        attempt, generation = busy.pop(slot)
        outcome = fate(slot, attempt, generation)
        state = finish(state, slot, attempt, outcome, f"{slot}-{attempt}", config)
        late = finish(state, slot, attempt, "scored", "orphan", config)
        assert late == state, "a second result of the same attempt must change nothing"
    raise AssertionError("the search does not end")


@settings(deadline=None, max_examples=120)
@given(configs, st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.8, 1.0]), st.integers(), st.integers(1, 8))
def test_any_order_gives_the_same_generations(
    config: SearchConfig, seed: int, success: float, order: int, room: int
) -> None:
    fate = fate_of(seed, success)
    first, history = play(config, fate, random.Random(0), 1)
    second, other = play(config, fate, random.Random(order), room)
    assert other == history
    assert dict(second.slots) == dict(first.slots)
    assert second.generations == first.generations


@settings(deadline=None, max_examples=80)
@given(configs, st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.8, 1.0]))
def test_the_end_is_the_wanted_number_or_the_limit(config: SearchConfig, seed: int, success: float) -> None:
    final, _ = play(config, fate_of(seed, success), random.Random(seed), 3)
    assert sorted(final.slots) == list(range(len(final.slots)))
    assert all(state.attempt < config.attempts for state in final.slots.values())
    scored = final.count("scored")
    assert scored == config.designs or len(final.slots) == slot_limit(config)
    assert scored <= config.designs
    if success == 1.0:
        assert len(final.slots) == config.designs


@settings(deadline=None, max_examples=80)
@given(configs)
def test_batches_partition_the_slots(config: SearchConfig) -> None:
    slots = range(slot_limit(config))
    last = batch_of(slots[-1], config)
    assert [slot for batch in range(last + 2) for slot in slots_of(batch, config)] == list(slots)
    for batch in range(last + 1):
        inside = slots_of(batch, config)
        assert all(batch_of(slot, config) == batch for slot in inside)
        elements = [element(slot, attempt, config) for attempt in range(3) for slot in inside]
        assert elements == list(range(3 * len(inside)))
        assert through_slot(batch + 1, config) == (inside.stop if inside else through_slot(batch, config))


def test_the_laptop_search() -> None:
    config = SearchConfig()  # 24 designs, cold start 6, batches of 6
    assert [len(slots_of(b, config)) for b in range(5)] == [6, 6, 6, 6, 6]
    state = built(Population(), 0)
    assert plan(Population(), config).build_generation == 0
    assert plan(state, config).propose == tuple((slot, 0, 0) for slot in range(6))
    for slot in range(6):
        state = finish(begin(state, slot, 0), slot, 0, "scored", f"d{slot}", config)
    assert plan(state, config).propose == ()
    assert plan(state, config).build_generation == 1
    assert plan(built(state, 1), config).propose == tuple((slot, 0, 1) for slot in range(6, 12))


def test_overlap_lets_the_next_batch_start_early() -> None:
    config = replace(SearchConfig(), overlap=1)
    proposals = plan(built(Population(), 0), config).propose
    assert proposals == tuple((slot, 0, 0) for slot in range(12))


def test_one_lost_slot_calls_for_one_more() -> None:
    config = replace(SearchConfig(), designs=6, cold_start=3, batch=3, attempts=2)
    state, _ = play(config, lambda slot, *_: "discarded" if slot == 1 else "scored", random.Random(0), 9)
    assert sorted(state.slots) == list(range(7))
    assert batch_of(6, config) == 2
    assert state.generations == 4


def test_a_failed_attempt_opens_the_next() -> None:
    config = replace(SearchConfig(), attempts=2)
    state = built(Population(), 0)
    state = finish(begin(state, 4, 0), 4, 0, "failed", "x", config)
    assert (4, 1, 0) in plan(state, config).propose
    state = finish(begin(state, 4, 1), 4, 1, "failed", "y", config)
    assert state.slot(4).status == "given_up"


def test_missing_history_is_named() -> None:
    with pytest.raises(RecordError, match="attempt 2 is recorded while attempt 0 is not over"):
        begin(Population(), 3, 2)
    with pytest.raises(RecordError, match="generation 2 exists without generation 0"):
        built(Population(), 2)
    assert built(built(Population(), 0), 0).generations == 1


def test_ten_thousand_slots_are_planned_quickly() -> None:
    config = replace(SearchConfig(), designs=10_000, cold_start=200, batch=50)
    closed = {slot: SlotState(slot, 0, "scored", str(slot)) for slot in range(9_900)}
    state = Population(closed, generations=196)
    started = time.perf_counter()
    assert len(plan(state, config).propose) == 50
    assert time.perf_counter() - started < 0.5
