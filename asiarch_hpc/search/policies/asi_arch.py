"""Policy `asi_arch`: a parent from the best ten, references from the rest of the top 50 (section 3.2)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from asiarch_hpc.config import SearchConfig
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.records import Generation
from asiarch_hpc.search.policies.base import Choice, Selection, distinct, seed_choices


@dataclass(frozen=True, slots=True)
class AsiArchPolicy:
    """Two-level sampling. `config` gives the ranks of parents and references and the number of references."""

    config: SearchConfig

    def select(self, generation: Generation, seeds: Sequence[str], rng: random.Random) -> Selection:
        """See Policy. Before the first candidate enters the pool (cold start), everything comes from the seeds."""
        ranked = [Choice("experiment", e.id) for e in sorted(generation.entries, key=lambda e: e.rank)]
        names = seed_choices(seeds)
        if not any(e.role == "candidate" for e in generation.entries) and names:
            ranked = []
        if not ranked and not names:
            raise ConfigError("nothing to breed from: the pool is empty and search.seed_designs names no design")
        parents, others = self._levels(ranked)
        parent = rng.choice(parents or names)
        # A level is used up before the next one is touched: lower ranks, then seeds, then the parents' level.
        references: list[Choice] = []
        for level in (others, names, parents):
            fresh = distinct([parent, *references, *level], generation)[1 + len(references) :]
            references += rng.sample(fresh, min(len(fresh), self.config.references - len(references)))
        return Selection(parent, tuple(references))

    def _levels(self, ranked: Sequence[Choice]) -> tuple[Sequence[Choice], Sequence[Choice]]:
        """The published ranks where the pool fills them; in a smaller pool the better half, and the other half."""
        (first, last), (reference_first, reference_last) = self.config.parent_ranks, self.config.reference_ranks
        if len(ranked) >= max(last, reference_first - 1 + self.config.references):
            return ranked[first - 1 : last], ranked[reference_first - 1 : reference_last]
        half = min(last, (len(ranked) + 1) // 2)
        return ranked[:half], ranked[half:]
