"""Job `debug`: after a failed training, repairs the design and passes it through the gate again."""

from __future__ import annotations

from collections.abc import Callable

from asiarch_hpc.agents.debugger import repair
from asiarch_hpc.agents.draft import Draft
from asiarch_hpc.agents.llm import Speaker
from asiarch_hpc.agents.researcher import Rules
from asiarch_hpc.designs.hashing import source_sha256
from asiarch_hpc.errors import RecordError
from asiarch_hpc.records import Experiment, Json
from asiarch_hpc.store.experiments import read_experiment
from asiarch_hpc.store.files import read_json
from asiarch_hpc.store.layout import RunLayout
from jobs.casefiles import CaseFiles
from jobs.entry import Attempt
from jobs.novelty import Novelty, refuse
from jobs.research import Development, scratch_folder, spent
from jobs.storing import now, store, written_before
from jobs.team import open_team
from jobs.workspace import Workspace


def run(attempt: Attempt, arguments: Json, speaker: Callable[..., Speaker] | None = None) -> Json:
    """Repairs the design of `experiment`; the payload is that of every proposal.

    Raises:
        AgentError: no valid repair, or one that is a known design.
        ServiceError: no server was up.
    """
    space = Workspace.of(attempt.layout)
    failed, slot, number = arguments["experiment"], arguments["slot"], arguments["attempt"]
    if (found := written_before(attempt, slot, number)) is not None:
        return found
    cases = CaseFiles(space)
    case, record = cases.of(failed), read_experiment(attempt.layout.experiment(failed))
    cause, error = failure_of(attempt.layout, failed)
    rules = Rules.of(space.config.gate, attention=space.config.scale.attention)
    seed = f"asiarch/{space.config.search.seed}/debug/{failed}"
    changes: list[str] = []
    with (
        open_team(space, attempt, kind="debug", tokens=arguments["tokens"], seed=seed, speaker=speaker) as team,
        scratch_folder() as folder,
    ):
        known, chain = cases.known(), _chain(attempt.layout, failed)
        tried = [f"after {p['cause']}: {p['change']}" for _, p in chain[::-1] if "change" in p]
        team.begin(known, [])

        def mend(broken: Draft | None, report: str) -> Draft:
            draft, change = repair(
                team.models,
                case,
                cause=cause,
                error=error,
                rules=rules,
                known=known,
                tried=tried,
                broken=broken,
                report=report,
            )
            changes.append(change)
            return draft

        # A good repair often answers like the design that failed, on the inputs on which that does not.
        novelty = Novelty(space, team, cases, known - {identifier for identifier, _ in chain})
        work = Development(attempt, space, team, novelty, arguments["reference"], folder)
        draft = mend(None, "")
        look = novelty.look(draft, folder, ask=False)
        refuse(look)
        draft, report, look = work.repaired(draft, look, mend)
        proposal = {"repairs": failed, "cause": cause, "change": changes[-1], "tries": len(changes), **spent(team)}
        repaired = Experiment(
            id=draft.id,
            name=draft.name,
            role="candidate",
            form=draft.form,
            operator="debug",
            proposer=record.proposer,
            policy=record.policy,
            source_sha256=source_sha256(draft.source.encode()),
            created=arguments.get("created") or now(),
            slot=slot,
            attempt=number,
            generation=record.generation,
            parents=record.parents,
            references=record.references,
        )
        return store(attempt, repaired, draft, report, proposal=proposal, rows=team.rows, prints=look.prints.to_json())


def failure_of(layout: RunLayout, identifier: str) -> tuple[str, str]:
    """Cause and message of the first trial that failed.

    Raises:
        RecordError: no trial of the experiment failed.
    """
    folder = layout.experiment(identifier)
    for root in sorted(folder.trials.iterdir()) if folder.trials.is_dir() else []:
        path = folder.trial(root.name).failure
        if path.exists():
            found = read_json(path)
            return str(found["cause"]), str(found["message"])
    raise RecordError(f"{folder.trials}: no failed trial was found; a repair needs one")


def _chain(layout: RunLayout, identifier: str) -> list[tuple[str, Json]]:
    """A design that failed, and those that it repairs, each with its proposal."""
    found: list[tuple[str, Json]] = []
    while True:
        proposal = read_json(layout.experiment(identifier).proposal)
        found.append((identifier, proposal))
        if not isinstance(proposal.get("repairs"), str):
            return found
        identifier = proposal["repairs"]
