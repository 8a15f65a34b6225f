"""Unit trees: the typed, factored form of a design (Genesys, section 4.1), and what can be done with them.

A node names a unit of the library, its arguments, and one child for each of the unit's slots. Trees are values:
every change gives a new tree.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from asiarch_hpc.designs.library import ArgSpec, Scalar, UnitSpec, least_heights, of_kinds
from asiarch_hpc.errors import DesignError

ROOT_KINDS = ("block", "stack")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}")

Path = tuple[str, ...]  # slots from the root down; () is the root


@dataclass(frozen=True)
class UnitNode:
    """One unit of a tree. Arguments that are left out have the unit's defaults."""

    unit: str
    args: Mapping[str, Scalar] = field(default_factory=dict)
    children: Mapping[str, UnitNode] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """`{"unit": …, "args": {…}, "children": {slot: node}}`."""
        children = {slot: child.to_json() for slot, child in self.children.items()}
        return {"unit": self.unit, "args": dict(self.args), "children": children}


@dataclass(frozen=True)
class UnitTree:
    """A named design. The name is for people; two trees with the same root are the same design."""

    name: str
    root: UnitNode

    def to_json(self) -> dict[str, Any]:
        """`{"name": …, "root": node}`; the inverse of `tree_from_json`."""
        return {"name": self.name, "root": self.root.to_json()}


def tree_from_json(data: Any) -> UnitTree:
    """Reads the JSON form of a tree; `validate` then checks it against the library.

    Raises:
        DesignError: a missing or unknown field, or a value of a wrong type, with its path in the tree.
    """
    _fields(data, "unit tree", required=("name", "root"))
    if not isinstance(data["name"], str):
        raise DesignError(f"unit tree: name: found {data['name']!r}, expected a string")
    return UnitTree(name=data["name"], root=node_from_json(data["root"]))


def node_from_json(data: Any, path: Path = ()) -> UnitNode:
    """Reads the JSON form of a node that stands at `path`; errors as in `tree_from_json`."""
    where = dotted(path)
    _fields(data, where, required=("unit",), optional=("args", "children"))
    unit, args, children = data["unit"], data.get("args", {}), data.get("children", {})
    if not isinstance(unit, str):
        raise DesignError(f"{where}: unit: found {unit!r}, expected the name of a unit")
    if not isinstance(args, dict) or not all(isinstance(value, (bool, int, float, str)) for value in args.values()):
        raise DesignError(f"{where} ({unit}): args: found {args!r}, expected an object of numbers, strings or booleans")
    if not isinstance(children, dict):
        raise DesignError(f"{where} ({unit}): children: found {children!r}, expected an object of nodes")
    below = {slot: node_from_json(child, (*path, slot)) for slot, child in children.items()}
    return UnitNode(unit=unit, args=dict(args), children=below)


def canonical_json(tree: UnitTree | UnitNode) -> str:
    """The tree as one line of JSON with sorted keys: equal trees give equal text."""
    return json.dumps(tree.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)


def dotted(path: Path) -> str:
    """A path as people read it: `root.mixer.gate`."""
    return ".".join(("root", *path))


def walk(node: UnitNode, path: Path = ()) -> Iterator[tuple[Path, UnitNode]]:
    """Every node with its path, parents first, children in slot order."""
    yield path, node
    for slot, child in node.children.items():
        yield from walk(child, (*path, slot))


def node_at(node: UnitNode, path: Path) -> UnitNode:
    """The node at `path` below `node`; DesignError where there is none."""
    for depth, slot in enumerate(path):
        if slot not in node.children:
            raise DesignError(
                f"{dotted(path[: depth + 1])}: no such place: {node.unit} has the children "
                f"{sorted(node.children) or 'none'}"
            )
        node = node.children[slot]
    return node


def replace_at(node: UnitNode, path: Path, new: UnitNode) -> UnitNode:
    """A copy of `node` with the subtree at `path` replaced; DesignError where there is no such place."""
    node_at(node, path)
    if not path:
        return new
    slot, rest = path[0], path[1:]
    children = {name: replace_at(child, rest, new) if name == slot else child for name, child in node.children.items()}
    return UnitNode(unit=node.unit, args=node.args, children=children)


def height(node: UnitNode) -> int:
    """Levels of the tree; 1 for a leaf."""
    return 1 + max((height(child) for child in node.children.values()), default=0)


def accepted_kinds(root: UnitNode, path: Path, units: Mapping[str, UnitSpec]) -> tuple[str, ...]:
    """The kinds that the slot at `path` takes; the root takes ROOT_KINDS."""
    if not path:
        return ROOT_KINDS
    return units[node_at(root, path[:-1]).unit].children[path[-1]]


def validate(tree: UnitTree, units: Mapping[str, UnitSpec]) -> None:
    """Checks names, slots, kinds and arguments of a tree against the library.

    Raises:
        DesignError: the first problem found, with its path, what was found and what was expected.
    """
    if not NAME.fullmatch(tree.name):
        raise DesignError(
            f"unit tree: name: found {tree.name!r}, expected 1 to 80 letters, digits or _ . + -, "
            "starting with a letter or digit"
        )
    _validate(tree.root, (), ROOT_KINDS, units)


def _validate(node: UnitNode, path: Path, kinds: Collection[str], units: Mapping[str, UnitSpec]) -> None:
    where = f"{dotted(path)} ({node.unit})"
    spec = units.get(node.unit)
    if spec is None or spec.kind not in kinds:
        fitting = ", ".join(unit.name for unit in of_kinds(units, kinds))
        found = "no unit of the library" if spec is None else f"a unit of kind {spec.kind}"
        raise DesignError(f"{where}: found {found}, expected kind {' or '.join(kinds)}: {fitting}")
    for name, value in node.args.items():
        if name not in spec.args:
            raise DesignError(f"{where}: found argument {name!r}, expected one of {sorted(spec.args) or 'none'}")
        if not spec.args[name].accepts(value):
            raise DesignError(f"{where}: argument {name}: found {value!r}, expected {spec.args[name].expected()}")
    for slot in node.children:
        if slot not in spec.children:
            raise DesignError(f"{where}: found child {slot!r}, expected only {sorted(spec.children) or 'no children'}")
    for slot, accepted in spec.children.items():
        if slot not in node.children:
            raise DesignError(f"{where}: no child {slot!r}, expected one of kind {' or '.join(accepted)}")
        _validate(node.children[slot], (*path, slot), accepted, units)


def random_tree(rng: random.Random, units: Mapping[str, UnitSpec], *, name: str, max_height: int) -> UnitTree:
    """A valid tree of at most `max_height` levels; the same generator state gives the same tree."""
    return UnitTree(name=name, root=random_node(rng, units, ROOT_KINDS, max_height=max_height))


def random_node(
    rng: random.Random, units: Mapping[str, UnitSpec], kinds: Collection[str], *, max_height: int
) -> UnitNode:
    """A valid subtree whose top is of one of `kinds`: units are drawn evenly among those that fit the height.

    Raises:
        DesignError: no unit of these kinds fits.
    """
    least = least_heights(units)
    return _random_node(rng, units, least, kinds, max_height)


def random_args(rng: random.Random, spec: UnitSpec) -> dict[str, Scalar]:
    """A value for every argument of a unit, evenly from its choices or range."""
    return {name: random_value(rng, arg) for name, arg in spec.args.items()}


def random_value(rng: random.Random, arg: ArgSpec) -> Scalar:
    """One value that `arg` accepts."""
    if arg.choices:
        return rng.choice(arg.choices)
    if isinstance(arg.default, int):
        return rng.randint(int(arg.low), int(arg.high))
    return rng.uniform(arg.low, arg.high)


def _random_node(
    rng: random.Random, units: Mapping[str, UnitSpec], least: Mapping[str, int], kinds: Collection[str], levels: int
) -> UnitNode:
    fitting = [spec for spec in of_kinds(units, kinds) if least.get(spec.name, levels + 1) <= levels]
    if not fitting:
        raise DesignError(f"no unit of kind {' or '.join(kinds)} fits into {levels} levels; allow a higher tree")
    spec = rng.choice(fitting)
    args = random_args(rng, spec)
    children = {slot: _random_node(rng, units, least, accepted, levels - 1) for slot, accepted in spec.children.items()}
    return UnitNode(unit=spec.name, args=args, children=children)


def _fields(data: Any, where: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    if not isinstance(data, dict):
        raise DesignError(f"{where}: found {type(data).__name__}, expected an object with {', '.join(required)}")
    for name in required:
        if name not in data:
            raise DesignError(f"{where}: no field {name!r}; found {sorted(data)}")
    for name in data:
        if name not in required + optional:
            raise DesignError(f"{where}: unknown field {name!r}; expected {', '.join(required + optional)}")
