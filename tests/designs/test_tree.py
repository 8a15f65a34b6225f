"""Unit trees as values: JSON, paths, replacement, validation, random trees."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.designs.library import library
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.designs.tree import (
    UnitNode,
    UnitTree,
    accepted_kinds,
    canonical_json,
    dotted,
    height,
    node_at,
    random_node,
    random_tree,
    replace_at,
    tree_from_json,
    validate,
    walk,
)
from asiarch_hpc.errors import DesignError

seeds = st.integers(0, 2**32)


def a_tree(seed: int, max_height: int = 6) -> UnitTree:
    return random_tree(random.Random(seed), library(), name="a-tree", max_height=max_height)


@settings(deadline=None, max_examples=60)
@given(seed=seeds, max_height=st.integers(3, 8))
def test_random_trees_are_valid_bounded_and_reproducible(seed, max_height):
    tree = a_tree(seed, max_height)
    validate(tree, library())
    assert height(tree.root) <= max_height
    assert tree == a_tree(seed, max_height)


@settings(deadline=None, max_examples=60)
@given(seed=seeds)
def test_json_round_trip(seed):
    tree = a_tree(seed)
    again = tree_from_json(json.loads(json.dumps(tree.to_json())))
    assert again == tree
    assert canonical_json(again) == canonical_json(tree)


def test_canonical_json_ignores_the_order_of_keys():
    leaf = UnitNode("RMSNorm")
    one = UnitNode("Pair", {"a": 1, "b": 2}, {"x": leaf, "y": leaf})
    two = UnitNode("Pair", {"b": 2, "a": 1}, {"y": leaf, "x": leaf})
    assert canonical_json(one) == canonical_json(two)
    assert canonical_json(one) != canonical_json(UnitNode("Pair", {"a": 1, "b": 3}, {"x": leaf, "y": leaf}))


@settings(deadline=None, max_examples=60)
@given(seed=seeds, data=st.data())
def test_replacing_changes_one_place_only(seed, data):
    units = library()
    root = a_tree(seed).root
    places = dict(walk(root))
    path = data.draw(st.sampled_from(sorted(places)))
    new = random_node(random.Random(seed + 1), units, accepted_kinds(root, path, units), max_height=6)
    changed = replace_at(root, path, new)
    validate(UnitTree("changed", changed), units)
    assert node_at(changed, path) == new
    assert replace_at(changed, path, places[path]) == root
    outside = {p: n.unit for p, n in places.items() if p[: len(path)] != path}
    assert outside == {p: n.unit for p, n in walk(changed) if p[: len(path)] != path}


def test_walk_visits_parents_first_and_agrees_with_node_at():
    root = seed_tree("delta_net").root
    visited = list(walk(root))
    assert visited[0] == ((), root)
    assert ("mixer", "convolution") in dict(visited)
    assert all(node_at(root, path) == node for path, node in visited)
    assert dotted(("mixer", "gate")) == "root.mixer.gate"


def test_no_such_place():
    root = seed_tree("gpt").root
    with pytest.raises(DesignError, match=r"root\.mixer\.wheel: no such place: SoftmaxAttention has the children"):
        replace_at(root, ("mixer", "wheel"), UnitNode("NoGate"))
    with pytest.raises(DesignError, match="no unit of kind block fits into 1 levels"):
        random_node(random.Random(0), library(), ("block",), max_height=1)


def with_change(path: tuple[str, ...], **change: object) -> UnitTree:
    tree = seed_tree("delta_net")
    node = node_at(tree.root, path)
    parts = {"unit": node.unit, "args": node.args, "children": node.children, **change}
    return UnitTree(tree.name, replace_at(tree.root, path, UnitNode(**parts)))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            with_change(("mixer",), unit="Wheel"),
            r"root\.mixer \(Wheel\): found no unit of the library, expected kind mixer or combinator: .*DeltaRule",
        ),
        (
            with_change(("mixer", "norm"), unit="SiLUGate", args={}),
            r"root\.mixer\.norm \(SiLUGate\): found a unit of kind gate, expected kind norm: .*RMSNorm",
        ),
        (
            UnitTree("x", UnitNode("SwiGLU")),
            r"root \(SwiGLU\): found a unit of kind ffn, expected kind block or stack: .*ResidualBlock",
        ),
        (
            with_change(("mixer",), children={"norm": UnitNode("NoNorm"), "gate": UnitNode("NoGate")}),
            r"root\.mixer \(DeltaRule\): no child 'convolution', expected one of kind convolution",
        ),
        (
            with_change(("mixer", "gate"), children={"norm": UnitNode("NoNorm")}),
            r"root\.mixer\.gate \(NoGate\): found child 'norm', expected only no children",
        ),
        (
            with_change(("mixer", "convolution"), args={"width": 5}),
            r"root\.mixer\.convolution \(ShortConvolution\): argument width: found 5, expected one of 2, 3, 4, 8",
        ),
        (
            with_change(("mixer", "convolution"), args={"width": True}),
            r"argument width: found True, expected one of 2, 3, 4, 8",
        ),
        (
            with_change(("mixer", "convolution"), args={"height": 4}),
            r"found argument 'height', expected one of \['activation', 'width'\]",
        ),
        (UnitTree('a"b', seed_tree("gpt").root), r"unit tree: name: found 'a\"b', expected 1 to 80 letters"),
    ],
)
def test_validation_names_path_found_and_expected(tree, message):
    with pytest.raises(DesignError, match=message):
        validate(tree, library())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "unit tree: found list, expected an object with name, root"),
        ({"name": "x"}, "unit tree: no field 'root'"),
        ({"name": 3, "root": {"unit": "NoGate"}}, "unit tree: name: found 3, expected a string"),
        ({"name": "x", "root": {"unit": "A", "kids": {}}}, "root: unknown field 'kids'; expected unit, args, children"),
        ({"name": "x", "root": {"unit": 1}}, "root: unit: found 1, expected the name of a unit"),
        ({"name": "x", "root": {"unit": "A", "args": {"a": []}}}, r"root \(A\): args: found"),
        ({"name": "x", "root": {"unit": "A", "children": [1]}}, r"root \(A\): children: found \[1\]"),
        ({"name": "x", "root": {"unit": "A", "children": {"b": 7}}}, r"root\.b: found int, expected an object"),
    ],
)
def test_malformed_json_is_refused_with_its_place(data, message):
    with pytest.raises(DesignError, match=message):
        tree_from_json(data)
