"""Job `propose` of the proposer `llm`: from the pool to a design that passed the gate, or did not."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from asiarch_hpc.agents.draft import Draft
from asiarch_hpc.agents.llm import Speaker
from asiarch_hpc.agents.researcher import Researcher, Rules
from asiarch_hpc.agents.tagger import tag
from asiarch_hpc.designs.hashing import source_sha256
from asiarch_hpc.errors import AgentError, StoppedError
from asiarch_hpc.gate.report import to_prompt
from asiarch_hpc.records import Experiment, GateReport, Json
from asiarch_hpc.search import population
from asiarch_hpc.search.policies import policy
from jobs.casefiles import CaseFiles, identifier
from jobs.entry import Attempt
from jobs.examine import examine
from jobs.novelty import Look, Novelty, refuse
from jobs.storing import now, store, written_before
from jobs.team import Team, open_team
from jobs.workspace import Workspace


def candidate(attempt: Attempt, arguments: Json, speaker: Callable[..., Speaker] | None = None) -> Json:
    """Makes the design of a slot's attempt; the payload is that of every proposal.

    Raises:
        AgentError: no valid reply, the budget is spent, or every proposal was known (`duplicate`).
        ServiceError: no server was up.
    """
    space = Workspace.of(attempt.layout)
    slot, number, generation = arguments["slot"], arguments["attempt"], arguments["generation"]
    if (found := written_before(attempt, slot, number)) is not None:
        return found
    search = space.config.search
    seed = f"asiarch/{search.seed}/llm/{population.batch_of(slot, search)}/{population.element(slot, number, search)}"
    cases = CaseFiles(space)
    pool = cases.generation(generation)
    selection = policy(search.policy, search).select(pool, search.seed_designs, random.Random(f"{seed}/selection"))
    shown = [cases.chosen(choice) for choice in (selection.parent, *selection.references)]
    with (
        open_team(space, attempt, kind="propose", tokens=arguments["tokens"], seed=seed, speaker=speaker) as team,
        scratch_folder() as folder,
    ):
        known = cases.known()
        team.begin(known, [case.id for case in shown if case.analysis])
        researcher = Researcher(
            models=team.models,
            parent=shown[0],
            references=shown[1:],
            standard=cases.standard(pool.baselines),
            rules=Rules.of(space.config.gate, attention=space.config.scale.attention),
            known=known,
            taken={*search.seed_designs, space.config.baselines.reference, space.config.baselines.upper},
            tree=cases.tree(selection.parent),
            max_height=search.operators.max_height,
            rng=random.Random(f"{seed}/edit"),
        )
        work = Development(attempt, space, team, Novelty(space, team, cases, known), arguments["reference"], folder)
        draft, look = work.novel(researcher)
        draft, report, look = work.repaired(draft, look, researcher.repair)
        tags = _tags(team, draft, researcher)
        proposal = {
            "novelty": look.to_json(),
            "components": tags,
            "rounds": work.rounds,
            "gate_repairs": work.repairs,
            **spent(team),
        }
        record = Experiment(
            id=draft.id,
            name=draft.name,
            role="candidate",
            form=draft.form,
            operator="llm",
            proposer="llm",
            policy=search.policy,
            source_sha256=source_sha256(draft.source.encode()),
            created=arguments.get("created") or now(),
            slot=slot,
            attempt=number,
            generation=generation,
            parents=(identifier(selection.parent),),
            references=tuple(identifier(choice) for choice in selection.references),
        )
        return store(attempt, record, draft, report, proposal=proposal, rows=team.rows, prints=look.prints.to_json())


@dataclass
class Development:
    """From a draft to a design that is new and passed the gate, or did not; counts what that took."""

    attempt: Attempt
    space: Workspace
    team: Team
    novelty: Novelty
    reference: str
    scratch: Path
    rounds: int = 0
    repairs: int = 0
    changes: list[str] = field(default_factory=list)

    def novel(self, researcher: Researcher) -> tuple[Draft, Look]:
        """A draft that repeats nothing; after a repetition the researcher leaves the direction.

        Raises:
            AgentError: `duplicate`, when every round gave a known design.
        """
        repeated = None
        for _ in range(self.space.config.agents.novelty.rounds):
            self.check_stop()
            draft = researcher.propose(repeated)
            self.rounds += 1
            look = self.novelty.look(draft, self.scratch, ask=draft.tree is None)
            if not look.repeats:
                return draft, look
            repeated = look.repeated()
        refuse(look)
        raise AssertionError("a draft that is not new is refused")

    def repaired(
        self, draft: Draft, look: Look, repair: Callable[[Draft, str], Draft]
    ) -> tuple[Draft, GateReport, Look]:
        """The draft through the gate, sent back with the report a bounded number of times.

        A repair that does not come leaves the last draft with its report: it is recorded as rejected.

        Raises:
            AgentError: `duplicate`, when a repair turned it into a known design.
        """
        report = self._gate(draft)
        while not report.passed and self.repairs < self.space.config.agents.gate_repairs:
            self.check_stop()
            try:
                draft = repair(draft, to_prompt(report))
            except AgentError as error:
                print(f"no repair: {error}", flush=True)
                break
            self.repairs += 1
            report = self._gate(draft)
        if self.repairs:
            look = self.novelty.look(draft, self.scratch, ask=False)
            refuse(look)
        return draft, report, look

    def check_stop(self) -> None:
        if self.attempt.should_stop():
            raise StoppedError(f"{self.attempt.work}: told to stop between two steps of a proposal")

    def _gate(self, draft: Draft) -> GateReport:
        print(f"gate: {draft.name} {draft.id}", flush=True)
        return examine(self.space, draft.source, reference=self.reference, scratch=self.attempt.layout.jobs)


def spent(team: Team) -> Json:
    """What a job used of language models."""
    return {
        "tokens": team.spending.tokens,
        "calls": team.spending.calls,
        "model_seconds": round(team.spending.seconds, 3),
        "models": sorted({row["model"] for row in team.rows if "model" in row and not row["error"]}),
    }


def _tags(team: Team, draft: Draft, researcher: Researcher) -> list[Json]:
    """What was changed and where the ideas come from; nothing where no model says so: a design is not lost by that.

    An edit of a tree is one change, which its motivation names.
    """
    if draft.tree is not None:
        return []
    try:
        found = tag(team.models, draft, researcher.parent, researcher.references_told())
    except AgentError as error:
        print(f"no tags: {error}", flush=True)
        return []
    return [item.model_dump() for item in found]


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="asiarch-propose-") as folder:
        yield Path(folder)
