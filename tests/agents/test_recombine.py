"""Recombination: every product is a working design, new, reproducible, and exactly what its motivation says."""

import ast
import itertools
import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.agents.recombine import Proposal, proposals, propose
from asiarch_hpc.agents.variation import complete, describe, size
from asiarch_hpc.config import OperatorConfig
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.contract import build_block
from asiarch_hpc.designs.hashing import design_id
from asiarch_hpc.designs.library import library
from asiarch_hpc.designs.seeds import SEEDS, seed_tree
from asiarch_hpc.designs.tree import (
    UnitNode,
    UnitTree,
    accepted_kinds,
    dotted,
    height,
    node_at,
    random_tree,
    tree_from_json,
    validate,
    walk,
)
from asiarch_hpc.errors import DesignError

MUTATION = OperatorConfig(mutation=1, crossover=0, scratch=0)
CROSSOVER = OperatorConfig(mutation=0, crossover=1, scratch=0)
SCRATCH = OperatorConfig(mutation=0, crossover=0, scratch=1)
TREES = [seed_tree(name) for name in SEEDS]


def draw(rng: random.Random) -> tuple[UnitTree, Sequence[UnitTree]]:
    parent, *references = rng.sample(TREES, 5)
    return parent, references


def example(seed: int, operators: OperatorConfig = OperatorConfig()) -> tuple[Proposal, list[UnitTree]]:  # noqa: B008
    rng = random.Random(seed)
    if seed % 2:  # what earlier proposals look like, beside the seeds
        stock = [random_tree(rng, library(), name=f"tree{i}", max_height=6) for i in range(4)]
    else:
        parent, references = draw(rng)
        stock = [parent, *references]
    made = propose(rng, parent=stock[0], references=stock[1:], operators=operators, forbidden=frozenset())
    return made, stock


def stream(count: int, operators: OperatorConfig, forbidden: frozenset[str] = frozenset()) -> list[Proposal]:
    made = proposals(lambda i: random.Random(f"run {i}"), draw, operators, forbidden)
    return list(itertools.islice(made, count))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**9))
def test_products_are_valid_designs(seed: int) -> None:
    made, _ = example(seed)
    validate(made.tree, library())
    ast.parse(made.source)
    assert made.source == compose(made.tree)
    assert made.id == design_id(made.source)
    assert made.tree == tree_from_json(made.tree.to_json())
    assert made.name == made.tree.name
    assert made.name.endswith(made.id[:4])


@pytest.mark.parametrize("seed", range(8))
def test_products_build_and_see_no_future(seed: int) -> None:
    made, _ = example(seed)
    torch.manual_seed(0)
    block = build_block(made.source, dim=16, heads=2, layer_idx=0, ffn_multiple=2.0).double()
    x = torch.randn(2, 70, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 40:] += torch.randn(2, 30, 16, dtype=torch.float64)
    with torch.no_grad():
        one, two = block(x)[0], block(changed)[0]
    assert one.isfinite().all()
    torch.testing.assert_close(one[:, :40], two[:, :40], rtol=1e-6, atol=1e-9)
    assert (one[:, 40:] - two[:, 40:]).abs().max() > 1e-6


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**9))
def test_the_same_seed_gives_the_same_proposal(seed: int) -> None:
    assert example(seed)[0] == example(seed)[0]


def test_the_order_of_stored_keys_does_not_matter() -> None:
    def turned(node: UnitNode) -> UnitNode:
        children = {slot: turned(child) for slot, child in reversed(node.children.items())}
        return UnitNode(node.unit, dict(reversed(node.args.items())), children)

    other = [UnitTree(tree.name, turned(tree.root)) for tree in TREES]
    for seed in range(10):
        one, two = (
            propose(random.Random(seed), parent=t[0], references=t[1:], operators=OperatorConfig(), forbidden=set())
            for t in (TREES, other)
        )
        assert one == two


def test_operators_come_with_their_weights() -> None:
    count = 300
    found = Counter(made.operator for made in stream(count, OperatorConfig()))
    for operator, weight in (("mutation", 0.75), ("crossover", 0.2), ("scratch", 0.05)):
        assert abs(found[operator] / count - weight) < 3 * (weight * (1 - weight) / count) ** 0.5


def test_all_four_mutations_occur() -> None:
    found = Counter(made.changes[0].action for made in stream(80, MUTATION))
    assert set(found) == {"replace", "insert", "remove", "set"}
    assert min(found.values()) >= 5


def replayed(made: Proposal, stock: Sequence[UnitTree]) -> UnitNode:
    """The tree that the changes give, checking what each of them claims about the tree before it."""
    units = library()
    root = complete(stock[0].root, units)
    for change in made.changes:
        before = node_at(root, change.path)
        assert change.before in (before, None)
        if change.before is not None:
            assert units[change.after.unit].kind in accepted_kinds(root, change.path, units)
        root = change.apply(root)
        assert node_at(root, change.path) == change.after
    return root


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**9), st.sampled_from([MUTATION, CROSSOVER, SCRATCH]))
def test_motivations_say_what_was_done(seed: int, operators: OperatorConfig) -> None:
    made, stock = example(seed, operators)
    assert replayed(made, stock) == made.tree.root
    for number, change in enumerate(made.changes, 1):
        line = f"\n{number}. {change.text}\n"
        assert line in made.motivation
        assert change.action == "scratch" or dotted(change.path) in change.text
        if change.action == "set":
            (name,) = [n for n, v in change.after.args.items() if v != change.before.args[n]]
            assert change.after.children == change.before.children
            old, new = change.before.args[name], change.after.args[name]
            assert f"{name} of {change.after.unit} was changed from {old!r} to {new!r}" in change.text
        elif change.action == "remove":
            assert change.after.unit in change.text
            assert describe(change.before) in change.text
        else:
            assert describe(change.after) in change.text
            assert change.before is None or describe(change.before) in change.text
    assert "not by a language model" in made.motivation
    assert f"{size(made.tree.root)} units" in made.motivation
    assert made.motivation.startswith(f"# {made.name}\n")


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**9))
def test_crossover_names_both_sources(seed: int) -> None:
    made, stock = example(seed, CROSSOVER)
    own, reference = (stock[i] for i in made.parents)
    assert made.operator == "crossover"
    assert own is stock[0]
    assert f"Crossover of {own.name} with {reference.name}." in made.motivation
    units = library()
    (change,) = made.changes
    places = [path for path, node in walk(complete(reference.root, units)) if node == change.after]
    assert any(f"of {reference.name}, where it stands at {dotted(path)}:" in change.text for path in places)
    assert change.path, "the root itself is never replaced by a reference"


def test_mutation_and_scratch_name_their_sources() -> None:
    made, stock = example(0, MUTATION)
    assert made.parents == (0,)
    assert f"Mutation of {stock[0].name}." in made.motivation
    assert f"Everything else is as in {stock[0].name}." in made.motivation
    made, _ = example(0, SCRATCH)
    assert made.parents == ()
    assert "without a parent" in made.motivation
    assert "Everything else" not in made.motivation


def test_insert_and_remove_are_each_others_inverse_in_kind() -> None:
    for made in stream(60, MUTATION):
        change = made.changes[0]
        if change.action == "insert":
            assert change.before in change.after.children.values()
        elif change.action == "remove" and change.after in change.before.children.values():
            assert f"{change.before.unit} was removed" in change.text
        elif change.action == "remove":
            assert change.after.unit.startswith("No")


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6))
def test_limits_hold_unless_the_parent_is_larger(seed: int) -> None:
    limited = OperatorConfig(max_units=9, max_height=4, draws=400)
    made, stock = example(seed, limited)
    grown = made.operator != "scratch"
    assert size(made.tree.root) <= max(9, size(stock[0].root) if grown else 0)
    assert height(made.tree.root) <= max(4, height(stock[0].root) if grown else 0)


def test_streams_have_a_common_prefix_and_no_repetition() -> None:
    whole = stream(60, OperatorConfig())
    ids = [made.id for made in whole]
    assert len(set(ids)) == 60
    assert stream(25, OperatorConfig()) == whole[:25]
    seeds = {design_id(compose(tree)) for tree in TREES}
    assert not seeds & set(ids)
    parent, references = draw(random.Random("run 7"))
    assert replayed(whole[7], [parent, *references]) == whole[7].tree.root


def test_forbidden_designs_are_never_proposed() -> None:
    forbidden: frozenset[str] = frozenset()
    for _ in range(4):
        made = stream(15, OperatorConfig(), forbidden)
        assert not forbidden & {m.id for m in made}
        forbidden |= {m.id for m in made}
    assert len(forbidden) == 60


def test_a_used_up_neighbourhood_is_left_by_more_changes() -> None:
    """Where two tries in a row meet designs that exist, the next try makes two changes, and the motivation says so."""
    parent = seed_tree("delta_net")
    operators = OperatorConfig(mutation=1, crossover=0, scratch=0, patience=2, draws=40)
    taken: set[str] = set()
    for index in range(120):
        made = propose(random.Random(index), parent=parent, references=[], operators=operators, forbidden=taken)
        assert made.id not in taken
        taken.add(made.id)
        if len(made.changes) > 1:
            assert f"so {len(made.changes)} changes were made, one after the other" in made.motivation
            assert replayed(made, [parent]) == made.tree.root
            return
    pytest.fail("120 designs without a second change")


def test_everything_forbidden_is_an_error_that_says_so() -> None:
    class Everything(frozenset[str]):
        def __contains__(self, item: object) -> bool:
            return True

    with pytest.raises(DesignError, match=r"recombination of delta_net by mutation: 12 tries.*search.operators.draws"):
        propose(
            random.Random(0),
            parent=TREES[0],
            references=[],
            operators=OperatorConfig(mutation=1, crossover=0, scratch=0, draws=12),
            forbidden=Everything(),
        )


def test_crossover_without_references_gives_way() -> None:
    operators = OperatorConfig(mutation=0.5, crossover=0.5, scratch=0)
    made = [
        propose(random.Random(i), parent=TREES[0], references=[], operators=operators, forbidden=set())
        for i in range(20)
    ]
    assert {m.operator for m in made} == {"mutation"}
    with pytest.raises(DesignError, match="no subtree to graft"):
        propose(random.Random(0), parent=TREES[0], references=[], operators=CROSSOVER, forbidden=set())


def test_a_tree_outside_the_library_is_refused() -> None:
    strange = UnitTree("strange", UnitNode("NoSuchUnit"))
    with pytest.raises(DesignError, match="NoSuchUnit"):
        propose(random.Random(0), parent=strange, references=[], operators=OperatorConfig(), forbidden=set())


def test_names_are_short_forms_of_the_mixers() -> None:
    for made in stream(30, OperatorConfig()):
        mixers = {node.unit for _, node in walk(made.tree.root) if library()[node.unit].kind == "mixer"}
        assert ("hybrid" in made.name) == (len(mixers) > 1)
        assert made.name == made.name.lower()
    known = {m.tree.root.children["mixer"].unit: m.name.rpartition("_")[0] for m in stream(60, MUTATION)
             if m.tree.root.unit == "ResidualBlock" and "hybrid" not in m.name}  # fmt: skip
    assert known["DeltaRule"] == "delta"
    assert known["GatedLinearAttention"] == "gla"
    assert known["RWKV6TimeMix"] == "rwkv6"
