"""Prints of behaviour: the same for one function written in two ways, another for another mechanism."""

from __future__ import annotations

import itertools
import json
import math
import random
from functools import cache
from pathlib import Path

import pytest
import torch

from asiarch_hpc.agents.recombine import propose
from asiarch_hpc.config import GateConfig, NoveltyConfig, OperatorConfig
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.seeds import SEEDS, seed_program, seed_tree
from asiarch_hpc.gate import behaviour
from asiarch_hpc.gate.behaviour import behaviour_print, print_here
from asiarch_hpc.gate.sandbox import RUNGS, probe
from asiarch_hpc.search.novelty import behaviour_distance
from tests.gate.rewrites import EQUAL, LINEAR, VARIANTS, program, renamed

TOLERANCE = NoveltyConfig().behaviour_tolerance


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def made(source: str) -> list[list[float]]:
    found = print_here(source)
    assert found is not None
    return found


def distance(a: str, b: str) -> float:
    return behaviour_distance(made(a), made(b))


@pytest.mark.parametrize("group", EQUAL)
def test_one_function_written_in_several_ways(group: str) -> None:
    first, *others = EQUAL[group]
    for other in others:
        assert distance(first, other) < TOLERANCE / 100
    for source in EQUAL[group]:
        assert renamed(source) != source
        assert distance(source, renamed(source)) < TOLERANCE / 100


@pytest.mark.parametrize("source", VARIANTS.values(), ids=VARIANTS.keys())
def test_another_mechanism(source: str) -> None:
    assert min(distance(source, group[0]) for group in EQUAL.values()) > 20 * TOLERANCE


def test_seed_designs_differ_and_do_not_depend_on_their_names() -> None:
    sources = {name: compose(seed_tree(name)) for name in SEEDS}
    for a, b in itertools.combinations(SEEDS, 2):
        assert distance(sources[a], sources[b]) > 100 * TOLERANCE, (a, b)
    for source in sources.values():
        assert distance(source, renamed(source)) < TOLERANCE / 100


def test_a_layer_program_and_a_unit_tree_of_one_architecture_agree() -> None:
    assert distance(seed_program("delta_net"), compose(seed_tree("delta_net"))) < TOLERANCE


def test_mutations_differ() -> None:
    rng = random.Random(0)
    parent = seed_tree("gla")
    others = [seed_tree("gpt"), seed_tree("mamba2")]
    sources = [compose(parent)]
    for _ in range(6):
        forbidden: set[str] = set()
        proposal = propose(rng, parent=parent, references=others, operators=OperatorConfig(), forbidden=forbidden)
        sources.append(proposal.source)
    for a, b in itertools.combinations(dict.fromkeys(sources), 2):
        assert distance(a, b) > TOLERANCE


def test_initial_values_of_one_parameter_do_not_hide_it() -> None:
    source = program(*LINEAR)
    biased = source.replace(
        "self.gate = nn.Linear(d, h)", "self.gate = nn.Linear(d, h); nn.init.constant_(self.gate.bias, 3.0)"
    )
    assert biased != source
    assert distance(source, biased) < TOLERANCE / 100
    without = source.replace("self.gate = nn.Linear(d, h)", "self.gate = nn.Linear(d, h, bias=False)")
    assert distance(source, without) > 20 * TOLERANCE


def test_single_precision_is_near() -> None:
    with behaviour._working(False):
        singles = [behaviour._readings(behaviour._Design(source, 2, torch.float32)) for source in EQUAL["linear"]]
    for single in singles:
        assert behaviour_distance(single, made(EQUAL["linear"][0])) < TOLERANCE


def test_randomness_state_and_casts_do_not_show() -> None:
    source = program(*LINEAR)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = print_here(source)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    assert print_here(source) == first
    cast = source.replace("x = hidden_states", "x = hidden_states.bfloat16().to(torch.float32).to(hidden_states.dtype)")
    counted = source.replace(
        "b, l, d = x.shape", "b, l, d = x.shape; self.calls = getattr(self, 'calls', 0) + 1; x = x * self.calls"
    )
    assert distance(source, cast) < TOLERANCE / 100
    assert distance(source, counted) < TOLERANCE / 100


def test_prints_are_small_and_plain() -> None:
    found = made(program(*LINEAR))
    assert len(json.dumps(found)) < 20_000
    assert all(math.isfinite(number) for reading in found for number in reading)


def test_designs_that_fail_have_no_print() -> None:
    source = program(*LINEAR)
    for wrong in (
        "def f(:",
        source.replace("x = hidden_states", "raise SystemExit"),
        source.replace("x = hidden_states", "x = hidden_states * float('nan')"),
        source.replace("x = hidden_states", "x = hidden_states.detach().numpy()"),
    ):
        assert print_here(wrong) is None


def _sandboxed() -> GateConfig:
    if all(map(probe, RUNGS[:-1])):
        pytest.skip("no rung that holds files works on this machine")
    return GateConfig(timeout_s=60.0)


def test_in_the_sandbox_the_print_is_the_same(tmp_path: Path) -> None:
    source = program(*LINEAR)
    found = behaviour_print(source, config=_sandboxed(), scratch=tmp_path)
    assert found == tuple(map(tuple, made(source)))
    assert not list(tmp_path.iterdir())


def test_in_the_sandbox_a_design_cannot_do_harm(tmp_path: Path) -> None:
    config = _sandboxed()
    source = program(*LINEAR)
    ended = source.replace("x = hidden_states", "import os; os._exit(0)")
    assert behaviour_print(ended, config=config, scratch=tmp_path) is None
    config.timeout_s = 2.0
    hangs = source.replace("x = hidden_states", "while True: pass")
    assert behaviour_print(hangs, config=config, scratch=tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("forged", [None, [], [[1.0]], [[1.0], "x"], [["a"], []], [[float("inf")], []], {"a": 1}])
def test_forged_answers_are_no_prints(forged: object) -> None:
    assert behaviour._checked(forged) is None
