"""What every search policy offers: whom to breed from, given one generation of the pool."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from asiarch_hpc.records import Generation


class Choice(NamedTuple):
    """One design to breed from: an experiment of the run by id, or a seed design by name."""

    kind: Literal["experiment", "seed"]
    id: str


@dataclass(frozen=True, slots=True)
class Selection:
    """One parent and the designs shown beside it; all of them are different designs."""

    parent: Choice
    references: tuple[Choice, ...]


class Policy(Protocol):
    """A pure function of its arguments: the same generation, seeds and rng state give the same selection."""

    def select(self, generation: Generation, seeds: Sequence[str], rng: random.Random) -> Selection:
        """Draws a parent and references.

        Args:
            generation: the pool that this batch draws from.
            seeds: names of the seed designs.

        Raises:
            ConfigError: there is nothing to draw from.
        """


def seed_choices(seeds: Sequence[str]) -> list[Choice]:
    """The seed designs as choices, each once, in their order."""
    return [Choice("seed", name) for name in dict.fromkeys(seeds)]


def distinct(choices: Sequence[Choice], generation: Generation) -> list[Choice]:
    """Drops repetitions, keeping the first. A trained baseline and the seed of its name are one design."""
    names = {stats.experiment: stats.name for stats in generation.baselines}
    kept: dict[tuple[str, str], Choice] = {}
    for choice in choices:
        name = names.get(choice.id) if choice.kind == "experiment" else choice.id
        kept.setdefault(("experiment", choice.id) if name is None else ("seed", name), choice)
    return list(kept.values())
