"""Policy `random`: breeding without selection pressure, the honest baseline of every other policy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from asiarch_hpc.config import SearchConfig
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.records import Generation
from asiarch_hpc.search.policies.base import Choice, Selection, distinct, seed_choices


@dataclass(frozen=True, slots=True)
class RandomPolicy:
    """Uniform over all seeds and everything ever scored; the pool's ranks play no part."""

    config: SearchConfig

    def select(self, generation: Generation, seeds: Sequence[str], rng: random.Random) -> Selection:
        """See Policy. Ids are sorted before the draw, so that the order of scoring plays no part either."""
        ids = sorted({*generation.scored, *(entry.id for entry in generation.entries)})
        everything = distinct([*(Choice("experiment", id) for id in ids), *seed_choices(seeds)], generation)
        if not everything:
            raise ConfigError("nothing to breed from: nothing is scored and search.seed_designs names no design")
        parent, *references = rng.sample(everything, min(len(everything), 1 + self.config.references))
        return Selection(parent, tuple(references))
