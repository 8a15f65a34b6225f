"""Job `propose`: makes a design, passes it through the gate, and writes the experiment, admitted or not."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import replace

from asiarch_hpc.agents.draft import Draft
from asiarch_hpc.agents.recombine import Proposal, proposals
from asiarch_hpc.config import uses_agents
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.hashing import design_id, source_sha256
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.designs.tree import UnitTree
from asiarch_hpc.records import Experiment, Generation, Json
from asiarch_hpc.search import population
from asiarch_hpc.search.policies import Choice, Selection, policy
from jobs.casefiles import CaseFiles, identifier
from jobs.entry import Attempt
from jobs.examine import examine
from jobs.storing import now, store
from jobs.workspace import Workspace


def baseline(attempt: Attempt, arguments: Json) -> Json:
    """Writes a seed design as baseline. The reference sets the size that all others are matched to."""
    space = Workspace.of(attempt.layout)
    name = arguments["design"]
    tree = seed_tree(name)
    source = compose(tree)
    report = examine(space, source, reference=arguments["reference"], scratch=attempt.layout.jobs)
    record = Experiment(
        id=design_id(source),
        name=name,
        role="baseline",
        form="tree",
        operator="seed",
        proposer="seed",
        policy=space.config.search.policy,
        source_sha256=source_sha256(source.encode()),
        created=now(),
    )
    motivation = "A seed design, trained as a baseline: every other design is compared with it."
    draft = Draft(name=name, motivation=motivation, source=source, form="tree", tree=tree)
    return store(attempt, record, draft, report, prints=_prints(space, source, attempt))


def candidate(attempt: Attempt, arguments: Json) -> Json:
    """Draws the design of a slot's attempt from the batch's stream of proposals."""
    space = Workspace.of(attempt.layout)
    slot, number = arguments["slot"], arguments["attempt"]
    breeding = Breeding(space, arguments["generation"], slot)
    proposal, selection = breeding.element(population.element(slot, number, space.config.search))
    report = examine(space, proposal.source, reference=arguments["reference"], scratch=attempt.layout.jobs)
    used = [(selection.parent, *selection.references)[position] for position in proposal.parents]
    record = Experiment(
        id=proposal.id,
        name=proposal.name,
        role="candidate",
        form="tree",
        operator=proposal.operator,
        proposer="recombine",
        policy=space.config.search.policy,
        source_sha256=source_sha256(proposal.source.encode()),
        created=now(),
        slot=slot,
        attempt=number,
        generation=arguments["generation"],
        parents=tuple(identifier(choice) for choice in used),
        references=tuple(identifier(choice) for choice in selection.references),
    )
    draft = Draft(
        name=proposal.name,
        motivation=proposal.motivation.partition("\n")[2].strip(),
        source=proposal.source,
        form="tree",
        tree=proposal.tree,
    )
    return store(attempt, record, draft, report, prints=_prints(space, proposal.source, attempt))


class Breeding:
    """The stream of proposals of one batch, the same in every job: seed, batch and pool generation determine it.

    Recombination knows unit trees alone, so where language models propose too, their programs are passed over.
    """

    def __init__(self, space: Workspace, generation: int, slot: int) -> None:
        self._cases = CaseFiles(space)
        self._search = space.config.search
        self._generation = self._trees(self._cases.generation(generation), space)
        self._batch = population.batch_of(slot, self._search)
        self._policy = policy(self._search.policy, self._search)
        self._tree = functools.cache(self._read_tree)

    def element(self, index: int) -> tuple[Proposal, Selection]:
        """The stream's element of that index, with the designs that it was drawn from."""
        stream = proposals(self._rng, self._draw, self._search.operators, frozenset(self._generation.tried))
        return next(itertools.islice(stream, index, None)), self._select(self._rng(index))

    def _trees(self, generation: Generation, space: Workspace) -> Generation:
        def is_tree(identifier: str) -> bool:
            return space.layout.experiment(identifier).units.exists()

        return replace(
            generation,
            entries=tuple(entry for entry in generation.entries if is_tree(entry.id)),
            scored=tuple(identifier for identifier in generation.scored if is_tree(identifier)),
        )

    def _rng(self, index: int) -> random.Random:
        return random.Random(f"asiarch/{self._search.seed}/{self._batch}/{index}")

    def _draw(self, rng: random.Random) -> tuple[UnitTree, list[UnitTree]]:
        selection = self._select(rng)
        return self._tree(selection.parent), [self._tree(choice) for choice in selection.references]

    def _select(self, rng: random.Random) -> Selection:
        return self._policy.select(self._generation, self._search.seed_designs, rng)

    def _read_tree(self, choice: Choice) -> UnitTree:
        tree = self._cases.tree(choice)
        assert tree is not None, choice
        return tree


def _prints(space: Workspace, source: str, attempt: Attempt) -> Json | None:
    """What language models' proposals are compared with; a run without them needs none."""
    if not uses_agents(space.config):
        return None
    from jobs.novelty import Prints

    return Prints.of(source, space, attempt.layout.jobs).to_json()
