"""Writes a design that a job made, as an experiment of the run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from asiarch_hpc.agents.draft import Draft
from asiarch_hpc.errors import RecordError, StoppedError
from asiarch_hpc.records import Experiment, GateReport, Json, from_json, to_json
from asiarch_hpc.store.experiments import read_experiment, write_experiment
from asiarch_hpc.store.files import read_json
from jobs.entry import Attempt
from jobs.transcripts import collect_exchanges, drop_transcripts, rows_text


def store(
    attempt: Attempt,
    record: Experiment,
    draft: Draft,
    report: GateReport,
    *,
    proposal: Json | None = None,
    rows: Sequence[Json] = (),
    prints: Json | None = None,
) -> Json:
    """Writes the experiment and gives the job's payload; one that an earlier attempt at this very work wrote is taken
    over.

    Raises:
        StoppedError: told to stop, and the gate's process was ended before the design could be judged.
    """
    attempt.check_current()
    if attempt.should_stop() and any(finding.code == "sandbox.killed" for finding in report.findings):
        raise StoppedError(f"{record.name}: stopped in the gate, without a verdict")
    lineage = {"operator": record.operator, "parents": record.parents, "references": record.references}
    exchanges = collect_exchanges(attempt.layout, attempt.work, rows) if rows else []
    written = write_experiment(
        attempt.layout,
        record,
        source=draft.source,
        motivation=draft.document(),
        gate=report,
        proposal={**lineage, **(proposal or {})} if record.role == "candidate" else None,
        units=draft.tree.to_json() if draft.tree is not None else None,
        exchanges=rows_text(exchanges),
        prints=prints,
    )
    if not written:
        folder = attempt.layout.experiment(record.id)
        found = read_experiment(folder)
        if (found.slot, found.attempt, found.role) != (record.slot, record.attempt, record.role):
            return {"duplicate": True, "tokens": (proposal or {}).get("tokens", 0)}
        report = from_json(GateReport, read_json(folder.gate), source=str(folder.gate))
    if rows:
        drop_transcripts(attempt.layout, attempt.work)
    return _payload(record, report, (proposal or {}).get("tokens", 0))


def written_before(attempt: Attempt, slot: int, number: int) -> Json | None:
    """The payload of a design that an earlier job wrote for this place, and died before it could say so."""
    if (attempt.submission, attempt.restart) == (1, 0):
        return None
    for folder in attempt.layout.all_experiments():
        with contextlib.suppress(RecordError):
            record = read_experiment(folder)
            if (record.slot, record.attempt) == (slot, number):
                report = from_json(GateReport, read_json(folder.gate), source=str(folder.gate))
                proposal = read_json(folder.proposal)
                return _payload(record, report, proposal.get("tokens", 0))
    return None


def _payload(record: Experiment, report: GateReport, tokens: int) -> Json:
    return {
        "duplicate": False,
        "id": record.id,
        "name": record.name,
        "role": record.role,
        "form": record.form,
        "operator": record.operator,
        "proposer": record.proposer,
        "parents": list(record.parents),
        "tokens": tokens,
        "gate": to_json(report),
    }


def now() -> str:
    """Time stamp of a record."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
