"""Reading and writing of experiment folders: whole or not at all, checked against their hash when read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asiarch_hpc.errors import RecordError
from asiarch_hpc.records import (
    Assessment,
    Evaluation,
    Experiment,
    GateReport,
    Json,
    Published,
    Score,
    TrialRecord,
    from_json,
    to_json,
)
from asiarch_hpc.store.curves import write_curves
from asiarch_hpc.store.files import json_bytes, move_aside, read_json, store_error, write_json, write_text
from asiarch_hpc.store.layout import ExperimentLayout, RunLayout


@dataclass(frozen=True, slots=True)
class StoredTrial:
    """One trial as found in the tree: either a record with its evaluation, or a failure."""

    name: str
    record: TrialRecord | None = None
    evaluation: Evaluation | None = None
    failure: Json | None = None


@dataclass(frozen=True, slots=True)
class StoredExperiment:
    """One experiment as found in the tree."""

    record: Experiment
    gate: GateReport
    score: Score | None
    trials: tuple[StoredTrial, ...] = ()
    assessment: Assessment | None = None
    tokens: int = 0  # that its proposal cost


@dataclass(frozen=True, slots=True)
class StoredPublished:
    """One imported design as found in the tree. It has no gate report and no score."""

    record: Experiment
    published: Published


@dataclass(slots=True)
class Scan:
    """Everything found under `experiments/`, with what had to be moved aside and why.

    Imported designs stand apart, so that nothing that counts experiments or fills a pool can meet them.
    """

    experiments: list[StoredExperiment] = field(default_factory=list)
    published: list[StoredPublished] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def write_experiment(
    layout: RunLayout,
    record: Experiment,
    *,
    source: str,
    motivation: str,
    gate: GateReport,
    proposal: Json | None = None,
    units: Any = None,
    exchanges: str = "",
    prints: Json | None = None,
) -> bool:
    """Creates an experiment's folder in one rename; False if the design already exists in the run.

    `exchanges` are the lines of `agents.jsonl`, `prints` what later proposals are compared with.

    Raises:
        StoreError: disk full or unwritable.
    """
    final = layout.experiment(record.id)
    with _folder_in_the_making(final) as temporary:
        write_text(temporary.architecture, source)
        write_text(temporary.motivation, motivation.rstrip() + "\n")
        write_json(temporary.gate, to_json(gate))
        if proposal is not None:
            write_json(temporary.proposal, proposal)
        if exchanges:
            write_text(temporary.exchanges, exchanges)
        if prints is not None:
            write_json(temporary.prints, prints)
        _write_record(temporary, record, units)
        return _publish(temporary, final)


def write_published(
    layout: RunLayout,
    record: Experiment,
    published: Published,
    *,
    source: str | None,
    motivation: str,
    units: Any = None,
    curves: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> bool:
    """Creates the folder of an imported design in one rename; False if the run has one of that id already.

    `source` is written byte for byte; without it, or without a motivation, there is no such file. `curves` are the
    rows of each trial's training curve, by trial.

    Raises:
        StoreError: disk full or unwritable.
    """
    final = layout.experiment(record.id)
    with _folder_in_the_making(final) as temporary:
        if source is not None:
            write_text(temporary.architecture, source)
        if motivation:
            write_text(temporary.motivation, motivation.rstrip() + "\n")
        for trial, rows in (curves or {}).items():
            write_curves(rows, temporary.trial(trial).curves)
        write_json(temporary.published, to_json(published))
        _write_record(temporary, record, units)
        return _publish(temporary, final)


@contextlib.contextmanager
def _folder_in_the_making(final: ExperimentLayout) -> Iterator[ExperimentLayout]:
    temporary = ExperimentLayout(final.root.with_name(f".{final.root.name}.{uuid.uuid4().hex[:8]}.tmp"))
    try:
        yield temporary
    finally:
        if temporary.root.exists():
            shutil.rmtree(temporary.root, ignore_errors=True)


def _write_record(folder: ExperimentLayout, record: Experiment, units: Any) -> None:
    if units is not None:
        write_json(folder.units, units)
        record = replace(record, units_sha256=hashlib.sha256(json_bytes(units)).hexdigest())
    write_json(folder.record, to_json(record))


def _publish(temporary: ExperimentLayout, final: ExperimentLayout) -> bool:
    try:
        os.rename(temporary.root, final.root)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise store_error(error, final.root) from error
    return True


def read_experiment(folder: ExperimentLayout) -> Experiment:
    """The record of an experiment, after checking the stored source against its hash.

    Raises:
        RecordError: missing, truncated, edited, or not matching its hash.
    """
    record = from_json(Experiment, read_json(folder.record), source=str(folder.record))
    if record.id != folder.root.name:
        raise RecordError(f"{folder.record}: id {record.id}, expected the folder's name {folder.root.name}")
    if record.source_sha256 or record.role != "published":
        _check_hash(folder.architecture, record.source_sha256)
    if record.units_sha256:
        _check_hash(folder.units, record.units_sha256)
    return record


def _check_hash(path: Path, expected: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    if found != expected:
        raise RecordError(f"{path}: sha256 {found[:16]}…, expected {expected[:16]}…; it was edited after it was stored")


def scan(layout: RunLayout, *, moved: bool = True) -> Scan:
    """Reads every experiment of the tree.

    A damaged file is moved aside when `moved`, and its message kept; without its record, source, units or gate
    report (an imported one: its published.json and curves) an experiment is damaged as a whole.
    """
    result = Scan()
    for folder in layout.all_experiments():
        try:
            record = read_experiment(folder)
            if record.role == "published":
                result.published.append(StoredPublished(record, _published(folder)))
                continue
            gate = from_json(GateReport, read_json(folder.gate), source=str(folder.gate))
        except RecordError as error:
            result.damaged.append(_aside(folder.root, str(error), moved))
            continue
        score = _optional(Score, folder.score, result, moved)
        assessment = _optional(Assessment, folder.assessment, result, moved)
        proposal = _optional(dict, folder.proposal, result, moved) if folder.exchanges.exists() else None
        tokens = proposal.get("tokens", 0) if isinstance(proposal, dict) else 0
        trials = tuple(_trials(folder, result, moved))
        result.experiments.append(StoredExperiment(record, gate, score, trials, assessment, tokens))
    return result


def _published(folder: ExperimentLayout) -> Published:
    published = from_json(Published, read_json(folder.published), source=str(folder.published))
    if published.experiment != folder.root.name:
        raise RecordError(f"{folder.published}: of {published.experiment}, expected the folder's {folder.root.name}")
    for trial in published.trials:
        if not folder.trial(trial).curves.is_file():
            raise RecordError(f"{folder.trial(trial).curves}: no such file; {folder.published.name} names its trial")
    return published


def _trials(folder: ExperimentLayout, result: Scan, moved: bool) -> Iterable[StoredTrial]:
    if not folder.trials.is_dir():
        return
    for root in sorted(folder.trials.iterdir()):
        trial = folder.trial(root.name)
        failure = _optional(dict, trial.failure, result, moved)
        record = _optional(TrialRecord, trial.record, result, moved)
        evaluation = _optional(Evaluation, trial.evaluation, result, moved)
        if record and evaluation:
            try:
                _check_hash(trial.evaluation, record.evaluation_sha256)
            except RecordError as error:
                result.damaged.append(_aside(trial.evaluation, str(error), moved))
                evaluation = None
        yield StoredTrial(root.name, record, evaluation, failure)


def _optional(cls: type, path: Path, result: Scan, moved: bool) -> Any:
    if not path.exists():
        return None
    try:
        data = read_json(path)
        return data if cls is dict else from_json(cls, data, source=str(path))
    except RecordError as error:
        result.damaged.append(_aside(path, str(error), moved))
        return None


def _aside(path: Path, message: str, moved: bool) -> str:
    return f"{message}; moved aside as {move_aside(path).name}" if moved else message
