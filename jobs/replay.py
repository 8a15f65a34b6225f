"""Makes a recorded experiment again from its transcript, without any server, and compares the files.

The jobs of its proposal and of its assessment run as they ran, in a copy of the run that shows them what the run held
then: the designs that were known, and of those that were read only the assessments that were there. The models' replies
come from `agents.jsonl`.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asiarch_hpc.agents.exchange import Exchange
from asiarch_hpc.agents.speakers import Transcript
from asiarch_hpc.errors import RecordError
from asiarch_hpc.records import Assessment, Experiment, GateReport, Json, from_json, to_json
from asiarch_hpc.store.experiments import read_experiment
from asiarch_hpc.store.files import read_json, write_json
from asiarch_hpc.store.layout import ExperimentLayout, RunLayout
from jobs import assess, debug, research
from jobs.casefiles import CaseFiles
from jobs.entry import Attempt
from jobs.transcripts import read_rows
from jobs.workspace import Workspace


@dataclass(frozen=True)
class Compared:
    """One file: whether the replay gave the same."""

    name: str
    same: bool


def replay(layout: RunLayout, identifier: str) -> list[Compared]:
    """Replays the proposal of an experiment and its assessment, as far as language models made them.

    Raises:
        RecordError: no such experiment, or no transcript of it.
        AgentError: `replay`: the conversation took another course, so code or configuration have changed.
    """
    folder = layout.experiment(identifier)
    record = read_experiment(folder)
    found = [*_proposal(layout, record, folder), *_assessment(layout, record, folder)]
    if not found:
        raise RecordError(
            f"{folder.exchanges}: no transcript was found; {record.name} was proposed by {record.proposer}"
        )
    return found


def _proposal(layout: RunLayout, record: Experiment, folder: ExperimentLayout) -> Iterator[Compared]:
    if record.proposer != "llm" or record.slot is None or record.attempt is None:
        return
    work = f"propose-{record.slot:05d}-{record.attempt:02d}"
    if not (rows := _last_attempt(folder.exchanges, work)):
        return
    with tempfile.TemporaryDirectory(prefix="asiarch-replay-") as scratch:
        copy = _copy(layout, Path(scratch))
        for known in rows[0]["known"]:
            left_out = () if known in rows[0]["assessed"] else ("assessment.json",)
            _link(layout.experiment(known), copy.experiment(known), left_out)
        attempt = _attempt(copy, work, rows[-1]["token"])
        attempt.claim()
        _job(record)(attempt, _arguments(layout, record, folder), _speaker(rows))
        yield from _compare(folder, copy.experiment(record.id), work)


def _assessment(layout: RunLayout, record: Experiment, folder: ExperimentLayout) -> Iterator[Compared]:
    work = f"assess-{record.id}"
    if not (rows := _last_attempt(folder.exchanges, work)):
        return
    stored = from_json(Assessment, read_json(folder.assessment), source=str(folder.assessment))
    with tempfile.TemporaryDirectory(prefix="asiarch-replay-") as scratch:
        copy = _copy(layout, Path(scratch))
        for other in layout.all_experiments():
            own = other.root.name == record.id
            left_out = ("assessment.json", "score.json", "agents.jsonl") if own else ()
            _link(other, copy.experiment(other.root.name), left_out)
        twin = copy.experiment(record.id).assessment
        if rows[0]["analysed"]:  # by an attempt before, whose judge failed
            write_json(twin, to_json(replace(stored, judge=None, tokens=0)))
        attempt = _attempt(copy, work, rows[-1]["token"])
        attempt.claim()
        space = Workspace.of(layout)
        baselines = CaseFiles(space).generation(0).baselines
        judged = space.config.fitness.judge == "llm" and record.role == "candidate"
        arguments: Json = {
            "experiment": record.id,
            "judge": judged,
            "baselines": [to_json(stats) for stats in sorted(baselines, key=lambda b: b.name)],
            "siblings": rows[0]["siblings"],
            "tokens": 0,
        }
        assess.run(attempt, arguments, _speaker(rows))
        made = from_json(Assessment, read_json(twin), source=str(twin))
    yield Compared(folder.assessment.name, replace(made, tokens=stored.tokens) == stored)


def _speaker(rows: Sequence[Json]) -> Callable[..., Transcript]:
    exchanges = _exchanges_of(rows)

    def make(record: Callable[[Exchange], None]) -> Transcript:
        return Transcript(exchanges, record)

    return make


def _job(record: Experiment) -> Callable[..., Json]:
    return debug.run if record.operator == "debug" else research.candidate


def _arguments(layout: RunLayout, record: Experiment, folder: ExperimentLayout) -> Json:
    space = Workspace.of(layout)
    wanted = space.config.baselines.reference
    baselines = CaseFiles(space).generation(record.generation).baselines
    found: Json = {
        "slot": record.slot,
        "attempt": record.attempt,
        "generation": record.generation,
        "reference": next(stats.experiment for stats in baselines if stats.name == wanted),
        "tokens": 0,
        "created": record.created,
    }
    if record.operator == "debug":
        found["experiment"] = read_json(folder.proposal)["repairs"]
    return found


def _attempt(layout: RunLayout, work: str, token: str) -> Attempt:
    submission, _, restart = token.partition(".")
    return Attempt(layout, "replay", work, int(submission), int(restart), mmap.mmap(-1, 1))


def _copy(layout: RunLayout, scratch: Path) -> RunLayout:
    """A run of links, without any experiment yet."""
    copy = RunLayout(scratch / layout.name)
    for folder in (copy.experiments, copy.jobs, copy.inbox):
        folder.mkdir(parents=True)
    for path in (layout.record, layout.corpus, layout.pool):
        os.symlink(path, copy.root / path.name)
    if (corpora := layout.root.parent / "corpora").exists():
        os.symlink(corpora, scratch / "corpora")
    return copy


def _link(source: ExperimentLayout, target: ExperimentLayout, left_out: Sequence[str]) -> None:
    target.root.mkdir(parents=True)
    for path in source.root.iterdir():
        if path.name not in left_out:
            os.symlink(path, target.root / path.name)


def _last_attempt(path: Path, work: str) -> list[Json]:
    """Rows of the attempt that did the work, the first of which says what it saw; those of earlier ones are left out.

    Raises:
        RecordError: the rows are not those of a job.
    """
    rows = [row for row in read_rows(path) if row.get("work") == work]
    last = [row for row in rows if row.get("token") == rows[-1].get("token")]
    if last and "known" not in last[0]:
        raise RecordError(f"{path}: the rows of {work} do not begin with what the job saw; they were edited")
    return last


def _compare(old: ExperimentLayout, new: ExperimentLayout, work: str) -> Iterator[Compared]:
    readers: dict[Path, Callable[[ExperimentLayout], Any]] = {
        old.gate: lambda folder: from_json(GateReport, read_json(folder.gate), source=str(folder.gate)),
        old.exchanges: lambda folder: _last_attempt(folder.exchanges, work),
    }
    written = (
        old.record,
        old.architecture,
        old.units,
        old.motivation,
        old.proposal,
        old.gate,
        old.prints,
        old.exchanges,
    )
    for path in written:
        twin = new.root / path.name
        if path.exists() != twin.exists():
            yield Compared(path.name, False)
        elif path.exists():
            read = readers.get(path)
            yield Compared(path.name, read(old) == read(new) if read else path.read_bytes() == twin.read_bytes())


def _exchanges_of(rows: Sequence[Json]) -> list[Exchange]:
    """The exchanges of a transcript's last attempt, for a replay.

    Raises:
        RecordError: a row is none.
    """
    last = rows[-1]["token"] if rows else ""
    names = {field.name for field in dataclasses.fields(Exchange)}
    try:
        return [
            Exchange(**{name: value for name, value in row.items() if name in names})
            for row in rows
            if row["token"] == last and "known" not in row
        ]
    except (TypeError, KeyError) as error:
        raise RecordError(f"agents.jsonl: not the exchanges of a job: {error!r}") from error
