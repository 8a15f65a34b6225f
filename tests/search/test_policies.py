"""Policies: who may be drawn, that nobody is drawn twice, and that a seed fixes the draw."""

import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_examples import BASELINES, REFERENCE_ID, UPPER_ID, baseline_scores, scored

from asiarch_hpc.config import SearchConfig
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.records import Generation
from asiarch_hpc.search.policies import Choice, policy
from asiarch_hpc.search.pool import build_generation

CONFIG = SearchConfig()
SEEDS = CONFIG.seed_designs
NAMES = {REFERENCE_ID: "delta_net", UPPER_ID: "gated_delta_net"}


def generation(candidates: int) -> Generation:
    """Candidates better than the baselines, which take the last two ranks."""
    scores = [scored(f"{i:016x}", 0.9 - i / 1000, i) for i in range(candidates)]
    return build_generation(int(candidates > 0), [*baseline_scores(), *scores], BASELINES, CONFIG, candidates)


def drawn_ranks(pool: Generation, times: int = 400) -> tuple[set[int], set[int], int]:
    """Ranks seen as parent, ranks seen as reference, and how many references were seeds."""
    ranks = {entry.id: entry.rank for entry in pool.entries}
    rng, parents, references, seeds = random.Random(0), set(), set(), 0
    for _ in range(times):
        selection = policy("asi_arch", CONFIG).select(pool, SEEDS, rng)
        parents.add(ranks[selection.parent.id])
        references |= {ranks[r.id] for r in selection.references if r.kind == "experiment"}
        seeds += sum(r.kind == "seed" for r in selection.references)
    return parents, references, seeds


def test_full_pool_follows_the_published_ranks() -> None:
    assert drawn_ranks(generation(70)) == (set(range(1, 11)), set(range(11, 51)), 0)


def test_fourteen_members_still_do() -> None:
    assert drawn_ranks(generation(12)) == (set(range(1, 11)), {11, 12, 13, 14}, 0)


def test_smaller_pools_take_parents_from_the_better_half() -> None:
    assert drawn_ranks(generation(8)) == ({1, 2, 3, 4, 5}, {6, 7, 8, 9, 10}, 0)


def test_seeds_fill_up_the_references_of_a_tiny_pool() -> None:
    parents, references, seeds = drawn_ranks(generation(2))
    assert (parents, references, seeds) == ({1, 2}, {3, 4}, 2 * 400)


def test_cold_start_draws_from_the_seeds_alone() -> None:
    rng, parents = random.Random(1), Counter[str]()
    for _ in range(2000):
        selection = policy("asi_arch", CONFIG).select(generation(0), SEEDS, rng)
        assert {c.kind for c in (selection.parent, *selection.references)} == {"seed"}
        assert len(selection.references) == 4
        parents[selection.parent.id] += 1
    assert set(parents) == set(SEEDS)
    assert min(parents.values()) > 170  # 250 expected of each


def test_random_draws_evenly_from_everything_ever_scored() -> None:
    pool = generation(70)
    assert len(pool.entries) == 50
    rng, parents = random.Random(2), Counter[str]()
    for _ in range(7600):
        parents[policy("random", CONFIG).select(pool, SEEDS, rng).parent.id] += 1
    designs = 70 + len(SEEDS)  # the two baselines are seeds
    assert len(parents) == designs
    assert max(parents.values()) < 2 * 7600 / designs


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(["asi_arch", "random"]),
    st.integers(0, 60),
    st.lists(st.sampled_from(SEEDS), max_size=8),
    st.integers(0, 6),
    st.integers(),
)
def test_no_design_twice_and_the_seed_decides(
    name: str, candidates: int, seeds: list[str], references: int, seed: int
) -> None:
    chooser = policy(name, replace(CONFIG, references=references))
    pool = generation(candidates)
    selection = chooser.select(pool, seeds, random.Random(seed))
    assert selection == chooser.select(pool, seeds, random.Random(seed))
    chosen = [NAMES.get(c.id, c.id) for c in (selection.parent, *selection.references)]
    assert len(set(chosen)) == len(chosen)
    available = {NAMES.get(id, id) for id in pool.scored} | set(seeds)
    if name == "asi_arch" and not candidates and seeds:
        available = set(seeds)
    if len(available) > references:
        assert len(selection.references) >= min(references, len(pool.entries) - 1)
    assert len(selection.references) <= references
    assert set(chosen) <= available


@pytest.mark.parametrize("name", ["asi_arch", "random"])
def test_the_draw_is_the_same_in_every_process(name: str) -> None:
    """Python orders sets of text differently in each process."""
    code = (
        "import random, test_policies as t; from asiarch_hpc.search.policies import policy; "
        f"print(policy('{name}', t.CONFIG).select(t.generation(30), t.SEEDS, random.Random(5)))"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(answers) == 1


def test_a_choice_is_a_pair() -> None:
    assert Choice("seed", "gla") == ("seed", "gla")


def test_nothing_to_draw_from() -> None:
    empty = Generation(number=1, formula="f", through_slot=0, entries=())
    for name in ("asi_arch", "random"):
        with pytest.raises(ConfigError, match="nothing to breed from"):
            policy(name, CONFIG).select(empty, [], random.Random(0))
    with pytest.raises(ConfigError, match="asi_arch"):
        policy("genesys", CONFIG)
