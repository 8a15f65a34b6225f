"""Typed random changes of unit trees: mutation, crossover, scratch (Genesys, section 4.3, arXiv 2506.20249).

Each function draws one change and returns it with a sentence that says what it did, or None where it finds
nothing to change. A change replaces the subtree at one place; slots accept the kinds that the library declares,
so every product is a valid tree.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from asiarch_hpc.designs.library import Scalar, UnitSpec, of_kinds
from asiarch_hpc.designs.tree import (
    Path,
    UnitNode,
    UnitTree,
    accepted_kinds,
    dotted,
    random_node,
    random_tree,
    random_value,
    replace_at,
    walk,
)
from asiarch_hpc.errors import DesignError

Units = Mapping[str, UnitSpec]
T = TypeVar("T")


@dataclass(frozen=True)
class Change:
    """One replacement of the subtree at `path`, `before` being None for a tree made from nothing."""

    action: str  # replace | insert | remove | set | graft | scratch
    path: Path
    before: UnitNode | None
    after: UnitNode
    text: str

    def apply(self, root: UnitNode) -> UnitNode:
        """The tree after the change."""
        return replace_at(root, self.path, self.after)


@dataclass(frozen=True)
class Place:
    """A node of a tree, and the kinds that may stand where it does."""

    path: Path
    node: UnitNode
    kinds: tuple[str, ...]


def complete(node: UnitNode, units: Units) -> UnitNode:
    """The same subtree with all arguments written out and everything in the library's order.

    Two trees give the same source exactly if their complete forms are equal.
    """
    spec = units[node.unit]
    args = {name: arg.resolve(node.args.get(name)) for name, arg in spec.args.items()}
    return UnitNode(node.unit, args, {slot: complete(node.children[slot], units) for slot in spec.children})


def size(node: UnitNode) -> int:
    """Units of a tree."""
    return sum(1 for _ in walk(node))


def describe(node: UnitNode) -> str:
    """A subtree in one line: `GatedMixer(mixer=Retention(norm=RMSNorm), width=2)`."""
    inner = [f"{slot}={describe(child)}" for slot, child in node.children.items()]
    inner += [f"{name}={value!r}" for name, value in node.args.items()]
    return f"{node.unit}({', '.join(inner)})" if inner else node.unit


def places_of(root: UnitNode, units: Units) -> list[Place]:
    """Every node of a tree as a place that can be changed."""
    return [Place(path, node, accepted_kinds(root, path, units)) for path, node in walk(root)]


def mutate(rng: random.Random, root: UnitNode, units: Units, max_height: int) -> Change | None:
    """Replaces, inserts, removes or re-parameterises one unit; each with the same probability where possible."""
    moves = [_replace, _insert, _remove, _set]
    rng.shuffle(moves)
    places = places_of(root, units)
    return next((change for move in moves if (change := move(rng, places, units, max_height))), None)


def graft(
    rng: random.Random, root: UnitNode, references: Sequence[UnitTree], units: Units
) -> tuple[Change, int] | None:
    """Puts a subtree of one reference into a place of its kind; returns the change and the reference's position.

    The root stays, since a whole reference in its place would be no crossing.
    """
    order = list(range(len(references)))
    rng.shuffle(order)
    places = [Place(path, node, accepted_kinds(root, path, units)) for path, node in walk(root) if path]
    for position in order:
        reference = references[position]
        pairs = [
            (place, Place(path, node, ()))
            for path, node in walk(reference.root)
            for place in places
            if units[node.unit].kind in place.kinds and node != place.node
        ]
        if pairs:
            place, scion = _evenly(rng, pairs, lambda pair: units[pair[1].node.unit].kind)
            text = (
                f"At {dotted(place.path)}, {describe(place.node)} was replaced by a subtree of {reference.name}, "
                f"where it stands at {dotted(scion.path)}: {describe(scion.node)}."
            )
            return Change("graft", place.path, place.node, scion.node, text), position
    return None


def scratch(rng: random.Random, units: Units, max_height: int) -> Change:
    """A new random tree."""
    node = complete(random_tree(rng, units, name="scratch", max_height=max_height).root, units)
    return Change("scratch", (), None, node, f"The whole tree was drawn at random: {describe(node)}.")


def _replace(rng: random.Random, places: Sequence[Place], units: Units, max_height: int) -> Change | None:
    options = [place for place in places if len(of_kinds(units, place.kinds)) > 1]
    if not options:
        return None
    place = _evenly(rng, options, lambda option: units[option.node.unit].kind)
    spec = rng.choice([spec for spec in of_kinds(units, place.kinds) if spec.name != place.node.unit])
    return replaced(rng, place, spec, units, max_height)


def replaced(rng: random.Random, place: Place, spec: UnitSpec, units: Units, max_height: int) -> Change | None:
    """Another unit in a place: children that fit are kept, the other slots are drawn; None where they find no room."""
    kept = _reuse(spec, place.node.children, units)
    after = _around(rng, spec, kept, place, units, max_height)
    if after is None:
        return None
    told = _listed("Kept below it", kept) + _listed("Drawn at random", [s for s in spec.children if s not in kept])
    text = f"At {dotted(place.path)}, {describe(place.node)} was replaced by {describe(after)}.{told}"
    return Change("replace", place.path, place.node, after, text)


def _insert(rng: random.Random, places: Sequence[Place], units: Units, max_height: int) -> Change | None:
    options = [
        (place, spec, slot)
        for place in places
        for spec in of_kinds(units, place.kinds)
        for slot, accepted in spec.children.items()
        if units[place.node.unit].kind in accepted
    ]
    if not options:
        return None
    place, spec, slot = _evenly(rng, options, lambda option: units[option[0].node.unit].kind)
    return inserted(rng, place, spec, slot, units, max_height)


def inserted(
    rng: random.Random, place: Place, spec: UnitSpec, slot: str, units: Units, max_height: int
) -> Change | None:
    """A unit above a place, whose node becomes its `slot`; None where its other slots find no room."""
    after = _around(rng, spec, {slot: place.node}, place, units, max_height)
    if after is None:
        return None
    told = _listed("Drawn at random", [other for other in spec.children if other != slot])
    text = (
        f"At {dotted(place.path)}, {spec.name} was inserted above {place.node.unit}, which became its {slot}: "
        f"{describe(place.node)} turned into {describe(after)}.{told}"
    )
    return Change("insert", place.path, place.node, after, text)


def _remove(rng: random.Random, places: Sequence[Place], units: Units, max_height: int) -> Change | None:
    options = [
        (place, slot, child)
        for place in places
        for slot, child in place.node.children.items()
        if units[child.unit].kind in place.kinds
    ]
    options += [
        (place, "", UnitNode(spec.name))
        for place in places
        if not _passes_on(units[place.node.unit].code)
        for spec in of_kinds(units, place.kinds)
        if _passes_on(spec.code)
    ]
    if not options:
        return None
    return removed(*_evenly(rng, options, lambda option: units[option[0].node.unit].kind))


def removed(place: Place, slot: str, after: UnitNode) -> Change:
    """A place without its unit: the child of `slot` stands there, or (slot "") a unit that passes its input on."""
    where, before = dotted(place.path), describe(place.node)
    text = (
        f"At {where}, {place.node.unit} was removed and its {slot} stands in its place: {before} turned into "
        f"{describe(after)}."
        if slot
        else f"At {where}, {before} was removed: {after.unit} stands in its place, which passes its input on."
    )
    return Change("remove", place.path, place.node, after, text)


def _set(rng: random.Random, places: Sequence[Place], units: Units, max_height: int) -> Change | None:
    options = [(place, name) for place in places for name in place.node.args]
    while options:
        place, name = option = _evenly(rng, options, lambda option: units[option[0].node.unit].kind)
        options.remove(option)
        old, spec = place.node.args[name], units[place.node.unit].args[name]
        other = [choice for choice in spec.choices if choice != old]
        new: Scalar = rng.choice(other) if other else old if spec.choices else random_value(rng, spec)
        if new != old:
            return set_to(place, name, new)
    return None


def set_to(place: Place, name: str, new: Scalar) -> Change:
    """A unit with another value of one argument."""
    after = UnitNode(place.node.unit, {**place.node.args, name: new}, place.node.children)
    old = place.node.args[name]
    text = f"At {dotted(place.path)}, {name} of {place.node.unit} was changed from {old!r} to {new!r}."
    return Change("set", place.path, place.node, after, text)


def _reuse(spec: UnitSpec, children: Mapping[str, UnitNode], units: Units) -> dict[str, UnitNode]:
    """Old children for the slots of a new unit: those of the same slot first, then any of a fitting kind."""
    kept = {
        slot: children[slot]
        for slot, accepted in spec.children.items()
        if slot in children and units[children[slot].unit].kind in accepted
    }
    rest = [child for slot, child in children.items() if slot not in kept]
    for slot, accepted in spec.children.items():
        fitting = [child for child in rest if units[child.unit].kind in accepted]
        if slot not in kept and fitting:
            kept[slot] = fitting[0]
            rest = [child for child in rest if child is not fitting[0]]
    return kept


def _around(
    rng: random.Random, spec: UnitSpec, kept: Mapping[str, UnitNode], place: Place, units: Units, max_height: int
) -> UnitNode | None:
    """The unit with its kept children and random ones in the other slots; None where they find no room."""
    levels = max_height - len(place.path) - 1
    children = dict(kept)
    for slot, accepted in spec.children.items():
        if slot not in children:
            try:
                children[slot] = random_node(rng, units, accepted, max_height=levels)
            except DesignError:
                return None
    args = {name: random_value(rng, arg) for name, arg in spec.args.items()}
    return complete(UnitNode(spec.name, args, children), units)


def _evenly(rng: random.Random, options: Sequence[T], kind: Callable[[T], str]) -> T:
    """A kind of unit first, then one of its options: many norms shall not crowd out the one mixer."""
    drawn = rng.choice(list(dict.fromkeys(kind(option) for option in options)))
    return rng.choice([option for option in options if kind(option) == drawn])


def _listed(what: str, slots: Iterable[str]) -> str:
    names = list(slots)
    return f" {what}: {', '.join(names)}." if names else ""


@lru_cache(maxsize=256)
def _passes_on(code: str) -> bool:
    """Whether a unit's class is only `def forward(...): return X, Z`."""
    parsed = ast.parse(code).body[0]
    assert isinstance(parsed, ast.ClassDef)
    functions = [node for node in parsed.body if isinstance(node, ast.FunctionDef)]
    return [f.name for f in functions] == ["forward"] and [ast.unparse(n) for n in functions[0].body] == [
        "return (X, Z)"
    ]
