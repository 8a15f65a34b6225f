"""A reply that is one edit of a unit tree, under a schema whose choices are the tree's places and the library's units.

Whatever a model answers under this schema is a valid tree, so that small models (and, in tests, random weights) can
propose designs. What an edit leaves open is filled in as in recombination.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asiarch_hpc.agents.reply import ReplyError
from asiarch_hpc.agents.variation import (
    Change,
    Place,
    complete,
    inserted,
    places_of,
    removed,
    replaced,
    set_to,
)
from asiarch_hpc.designs.library import ArgSpec, Scalar, UnitSpec, library, of_kinds
from asiarch_hpc.designs.tree import UnitNode, UnitTree, dotted, walk

Json = dict[str, Any]
# Bounded by a pattern, since servers do not hold models to maxLength; in words, since long repetitions of one class are
# more than vLLM's grammar compiler takes.
MOTIVATION = r"^[A-Za-z][A-Za-z0-9,.;:()-]{0,20}( [A-Za-z0-9,.;:()-]{1,20}){5,60}$"
STEPS = 5  # values offered for an argument with a range


@dataclass(frozen=True)
class TreeEdits:
    """All edits of one tree."""

    tree: UnitTree
    max_height: int

    @classmethod
    def of(cls, tree: UnitTree, max_height: int) -> TreeEdits:
        return cls(UnitTree(tree.name, complete(tree.root, library())), max_height)

    def schema(self) -> Json:
        """The JSON schema of a reply: a motivation and one edit."""
        return _object(motivation={"type": "string", "pattern": MOTIVATION}, edit={"anyOf": list(self._edits())})

    def apply(self, reply: Mapping[str, Any], rng: random.Random) -> tuple[UnitNode, Change]:
        """The tree after the edit, and the change in words.

        Raises:
            ReplyError: the edit is none of the schema's, or leaves slots that find no room.
        """
        units = library()
        edit = reply.get("edit")
        if not isinstance(edit, Mapping) or not isinstance(reply.get("motivation"), str):
            raise ReplyError("the reply needs the fields motivation, a text, and edit, an object")
        place = next((p for p in places_of(self.tree.root, units) if dotted(p.path) == edit.get("place")), None)
        if place is None:
            raise ReplyError(f"place {edit.get('place')!r} is not in the tree")
        change = self._change(edit, place, rng)
        if change is None:
            raise ReplyError("the unit's own parts find no room in the tree; choose a unit with fewer parts")
        return change.apply(self.tree.root), change

    def listing(self) -> str:
        """The tree, one unit a line."""
        return "\n".join(
            f"{'  ' * len(path)}{dotted(path)}: {node.unit}"
            + (f" ({', '.join(f'{name}={value!r}' for name, value in node.args.items())})" if node.args else "")
            for path, node in walk(self.tree.root)
        )

    def units(self) -> str:
        """The units that fit anywhere in the tree, with what they are."""
        units = library()
        kinds = {kind for place in places_of(self.tree.root, units) for kind in place.kinds}
        return "\n".join(f"- {spec.name} ({spec.kind}): {spec.summary}" for spec in of_kinds(units, kinds))

    def _change(self, edit: Mapping[str, Any], place: Place, rng: random.Random) -> Change | None:
        units = library()
        action, spec = edit.get("action"), units.get(str(edit.get("unit")))
        if action == "replace" and spec is not None and spec.kind in place.kinds and spec.name != place.node.unit:
            return replaced(rng, place, spec, units, self.max_height)
        if action == "insert" and spec is not None and (slot := _slot_for(spec, place)):
            return inserted(rng, place, spec, slot, units, self.max_height)
        if action == "remove" and edit.get("keep") in _keepable(place):
            slot = str(edit["keep"])
            return removed(place, slot, place.node.children[slot])
        name, value = str(edit.get("argument")), edit.get("value")
        if action == "set" and name in place.node.args and value in _values(units[place.node.unit].args[name]):
            if value == place.node.args[name]:
                raise ReplyError(f"{name} is {value!r} already; choose another value or another edit")
            return set_to(place, name, value)
        raise ReplyError(f"the edit {dict(edit)!r} is none of those that the schema offers")

    def _edits(self) -> Iterator[Json]:
        units = library()
        for place in places_of(self.tree.root, units):
            where = {"const": dotted(place.path)}
            others = [spec.name for spec in of_kinds(units, place.kinds) if spec.name != place.node.unit]
            if others:
                yield _object(action={"const": "replace"}, place=where, unit={"enum": others})
            above = [spec.name for spec in of_kinds(units, place.kinds) if _slot_for(spec, place)]
            if above:
                yield _object(action={"const": "insert"}, place=where, unit={"enum": above})
            if kept := _keepable(place):
                yield _object(action={"const": "remove"}, place=where, keep={"enum": kept})
            for name, old in place.node.args.items():
                values = [value for value in _values(units[place.node.unit].args[name]) if value != old]
                if values:
                    named = {"argument": {"const": name}, "value": {"enum": values}}
                    yield _object(action={"const": "set"}, place=where, **named)


def _object(**properties: Any) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _slot_for(spec: UnitSpec, place: Place) -> str:
    """The first slot of a unit that takes what stands in a place; "" where none does."""
    if spec.kind not in place.kinds:
        return ""
    kind = library()[place.node.unit].kind
    return next((slot for slot, accepted in spec.children.items() if kind in accepted), "")


def _keepable(place: Place) -> list[str]:
    """Slots whose child may stand in its parent's place."""
    return [slot for slot, child in place.node.children.items() if library()[child.unit].kind in place.kinds]


def _values(spec: ArgSpec) -> list[Scalar]:
    """The values that an argument is offered: its choices, or some of its range."""
    if spec.choices:
        return list(spec.choices)
    low, high = spec.low, spec.high
    if isinstance(spec.default, int):
        steps = min(STEPS - 1, int(high) - int(low))
        return sorted({round(low + i * (high - low) / max(1, steps)) for i in range(steps + 1)})
    return [round(low + i * (high - low) / (STEPS - 1), 6) for i in range(STEPS)]
