"""Makes a recorded experiment again from its transcript, without any server, and compares the files.

The proposal's job runs as it ran, in a copy of the run that shows it what the run held then: the designs that it knew,
and of those that it read only the assessments that were there. The models' replies come from `agents.jsonl`.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asiarch_hpc.agents.exchange import Exchange
from asiarch_hpc.agents.speakers import Transcript
from asiarch_hpc.errors import RecordError
from asiarch_hpc.records import Experiment, GateReport, Generation, Json, from_json
from asiarch_hpc.store.experiments import read_experiment
from asiarch_hpc.store.files import read_json
from asiarch_hpc.store.layout import ExperimentLayout, RunLayout
from jobs import debug, research
from jobs.entry import Attempt
from jobs.team import exchanges_of, read_rows
from jobs.workspace import Workspace


@dataclass(frozen=True)
class Compared:
    """One file: whether the replay gave the same."""

    name: str
    same: bool


def replay(layout: RunLayout, identifier: str) -> list[Compared]:
    """Replays the proposal of an experiment; one entry for each of its files.

    Raises:
        RecordError: no such experiment, or none that language models proposed.
        AgentError: `replay`: the conversation took another course, so code or configuration have changed.
    """
    folder = layout.experiment(identifier)
    record = read_experiment(folder)
    if record.proposer != "llm" or record.slot is None or record.attempt is None:
        raise RecordError(
            f"{folder.record}: proposed by {record.proposer}; a replay needs a proposal of language models"
        )
    work = f"propose-{record.slot:05d}-{record.attempt:02d}"
    rows = [row for row in read_rows(folder.exchanges) if row.get("work") == work]
    if not rows or "known" not in rows[0]:
        raise RecordError(f"{folder.exchanges}: no transcript of {work} was found in it")
    with tempfile.TemporaryDirectory(prefix="asiarch-replay-") as scratch:
        copy = _copy(layout, Path(scratch), rows)
        attempt = _attempt(copy, work, rows[-1]["token"])
        attempt.claim()
        _job(record, folder)(attempt, _arguments(layout, record, folder), _speaker(rows))
        return list(_compare(folder, copy.experiment(identifier), work))


def _speaker(rows: Sequence[Json]) -> Callable[..., Transcript]:
    exchanges = exchanges_of(rows)

    def make(record: Callable[[Exchange], None]) -> Transcript:
        return Transcript(exchanges, record)

    return make


def _job(record: Experiment, folder: ExperimentLayout) -> Callable[..., Json]:
    return debug.run if record.operator == "debug" else research.candidate


def _arguments(layout: RunLayout, record: Experiment, folder: ExperimentLayout) -> Json:
    path = layout.generation(record.generation)
    generation = from_json(Generation, read_json(path), source=str(path))
    wanted = Workspace.of(layout).config.baselines.reference
    found: Json = {
        "slot": record.slot,
        "attempt": record.attempt,
        "generation": record.generation,
        "reference": next(stats.experiment for stats in generation.baselines if stats.name == wanted),
        "tokens": 0,
        "created": record.created,
    }
    if record.operator == "debug":
        found["experiment"] = read_json(folder.proposal)["repairs"]
    return found


def _attempt(layout: RunLayout, work: str, token: str) -> Attempt:
    submission, _, restart = token.partition(".")
    return Attempt(layout, "replay", work, int(submission), int(restart), mmap.mmap(-1, 1))


def _copy(layout: RunLayout, scratch: Path, rows: Sequence[Json]) -> RunLayout:
    """A run of links to what the job saw."""
    copy = RunLayout(scratch / layout.name)
    for folder in (copy.experiments, copy.jobs, copy.inbox):
        folder.mkdir(parents=True)
    for path in (layout.record, layout.corpus, layout.pool):
        os.symlink(path, copy.root / path.name)
    if (corpora := layout.root.parent / "corpora").exists():
        os.symlink(corpora, scratch / "corpora")
    start = next(row for row in rows if row["token"] == rows[-1]["token"])
    for identifier in start["known"]:
        _link(layout.experiment(identifier), copy.experiment(identifier), assessed=identifier in start["assessed"])
    return copy


def _link(source: ExperimentLayout, target: ExperimentLayout, *, assessed: bool) -> None:
    target.root.mkdir(parents=True)
    for path in source.root.iterdir():
        if path != source.assessment or assessed:
            os.symlink(path, target.root / path.name)


def _last_attempt(path: Path, work: str) -> list[Json]:
    """Rows of the attempt that made the design; those of earlier ones stand before them."""
    rows = [row for row in read_rows(path) if row.get("work") == work]
    return [row for row in rows if row["token"] == rows[-1]["token"]]


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
