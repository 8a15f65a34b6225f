"""Makes a run folder of what an importer read. Nothing of it is executed, scored or put into a pool."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from asiarch_hpc.designs.hashing import design_id, source_sha256
from asiarch_hpc.errors import ConfigError, DesignError, RecordError
from asiarch_hpc.importers.published import Curve, PublishedDesign, PublishedRun, identifier
from asiarch_hpc.records import Experiment, Form, ImportedRun, Mark, Published, from_json, to_json
from asiarch_hpc.store.experiments import write_published
from asiarch_hpc.store.files import json_bytes, read_json, store_error, write_json
from asiarch_hpc.store.layout import RUN_NAME, RunLayout

TRIAL = "published-{scale}"
WRITERS = 16  # threads: nearly all the time is waiting for the disk, once for each file


def write(layout: RunLayout, run: PublishedRun, *, created: str, code: str) -> bool:
    """Writes an import as a run; False if this very import is there already.

    The run appears whole under its name or not at all. Ids: a design with a program has the id that the program has
    everywhere; one without a program, with a program that does not parse, or with the program of an earlier design
    has `importers.published.identifier` of its origin and key.

    Args:
        created: time stamp of the records.
        code: version of this code, for `run.json`.

    Raises:
        ConfigError: something else stands under the run's name.
        RecordError: two designs of one key, a lineage with a cycle, a value that cannot be stored.
        StoreError: disk full or unwritable.
    """
    if layout.root.exists():
        _refuse_another(layout, run)
        return False
    for design in run.designs:
        _refuse_unstorable(run, design)
    ids, marks = _identify(run)
    _refuse_cycles(run)
    temporary = RunLayout(layout.root.with_name(f".{layout.name}.{uuid.uuid4().hex[:8]}.tmp"))
    try:
        with ThreadPoolExecutor(WRITERS) as pool:
            writing = functools.partial(_write_design, temporary, run, ids, marks, created)
            list(pool.map(writing, run.designs))  # the first error ends it, and cancels what has not begun
        record = ImportedRun(
            kind="imported",
            origin=run.origin,
            importer_version=run.version,
            files=run.files,
            created=created,
            code=code,
            notes=run.notes,
        )
        write_json(temporary.record, to_json(record))
        try:
            os.rename(temporary.root, layout.root)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise store_error(error, layout.root) from error
            _refuse_another(layout, run)  # another import was faster
            return False
    finally:
        shutil.rmtree(temporary.root, ignore_errors=True)
    return True


def _refuse_another(layout: RunLayout, run: PublishedRun) -> None:
    """Raises ConfigError unless the run is the import of the same files by the same importer."""
    found = read_json(layout.record) if layout.record.exists() else None
    if isinstance(found, dict) and found.get("kind") == "imported":
        record = from_json(ImportedRun, found, source=str(layout.record))
        old = (record.origin, record.importer_version, sorted(file.sha256 for file in record.files))
        if old == (run.origin, run.version, sorted(file.sha256 for file in run.files)):
            return
        what = f"the import of other data ({record.origin}, {', '.join(file.name for file in record.files)})"
    else:
        what = "no import" if found is not None else "no run"
    raise ConfigError(f"{layout.root}: this folder exists and is {what}; give the import another name with --run")


def _refuse_unstorable(run: PublishedRun, design: PublishedDesign) -> None:
    """Raises RecordError for what cannot be a file or a folder, before any is written."""
    try:
        for text in (design.key, design.name, design.motivation, design.source or ""):
            text.encode()
        json_bytes([design.units, design.results, design.metadata, design.score])
    except (TypeError, ValueError) as error:  # half a surrogate pair; what JSON does not hold
        raise RecordError(
            f"{run.origin} {design.key!r}: {error}; expected Unicode text and JSON without NaN"
        ) from error
    for scale in design.curves:
        if not RUN_NAME.fullmatch(scale):
            raise RecordError(f"{run.origin} {design.key!r}: scale {scale!r}, expected letters, digits or _ . -")


def _identify(run: PublishedRun) -> tuple[dict[str, str], dict[str, list[Mark]]]:
    """The id of each design and the marks that follow from the import as a whole, by key."""
    ids: dict[str, str] = {}
    marks: dict[str, list[Mark]] = {}
    taken: set[str] = set()
    for design in run.designs:
        if design.key in ids:
            raise RecordError(f"{run.origin}: two designs of key {design.key!r}; each key names one design")
        found, own = identifier(run.origin, design.key), list(design.marks)
        if design.source is None:
            own.append("no_program")
        else:
            try:
                program = design_id(design.source, where=f"{run.origin} {design.key}")
            except DesignError:
                own.append("no_parse")
            else:
                if program in taken:
                    own.append("same_program")
                else:
                    found = program
        if any(not _finite(curve) for curve in design.curves.values()):
            own.append("nan_loss")
        ids[design.key], marks[design.key] = found, own
        taken.add(found)
    for design in run.designs:
        if not set(design.parents) <= set(ids):
            marks[design.key].append("orphan")
    return ids, marks


def _finite(curve: Curve) -> bool:
    return all(abs(loss) < float("inf") for loss in curve.losses)


def _refuse_cycles(run: PublishedRun) -> None:
    """Raises RecordError where a design descends from itself: who follows parents must come to an end."""
    parents = {design.key: design.parents for design in run.designs}
    sound: set[str] = set()
    for start in parents:
        line = dict.fromkeys([start])  # the way from `start` to the node in hand, in order
        branches = [iter(parents[start])]
        while branches:
            parent = next(branches[-1], None)
            if parent is None:
                branches.pop()
                sound.add(line.popitem()[0])
            elif parent in line:
                loop = [*list(line)[list(line).index(parent) :], parent]
                raise RecordError(f"{run.origin}: {' -> '.join(loop[:12])}: found a design that is its own ancestor")
            elif parent in parents and parent not in sound:
                line[parent] = None
                branches.append(iter(parents[parent]))


def _write_design(
    layout: RunLayout,
    run: PublishedRun,
    ids: Mapping[str, str],
    marks: Mapping[str, Sequence[Mark]],
    created: str,
    design: PublishedDesign,
) -> None:
    identity = ids[design.key]
    form: Form = "none" if design.source is None else "program"
    record = Experiment(
        id=identity,
        name=design.name,
        role="published",
        form=form if design.units is None else "tree",
        operator="published",
        proposer=run.origin,
        policy=run.origin,
        source_sha256="" if design.source is None else source_sha256(design.source.encode()),
        created=created,
        parents=tuple(ids[key] for key in design.parents if key in ids),
        references=tuple(ids[key] for key in design.references if key in ids),
    )
    trials = {TRIAL.format(scale=scale): curve for scale, curve in design.curves.items()}
    published = Published(
        experiment=identity,
        origin=run.origin,
        key=design.key,
        parents=design.parents,
        references=design.references,
        score=design.score,
        parameters=design.parameters,
        results=design.results,
        trials=tuple(trials),
        marks=tuple(dict.fromkeys(marks[design.key])),
        metadata=design.metadata,
    )
    new = write_published(
        layout,
        record,
        published,
        source=design.source,
        motivation=design.motivation,
        units=design.units,
        curves={name: _rows(curve) for name, curve in trials.items()},
    )
    assert new, f"{identity} stands for two designs"


def _rows(curve: Curve) -> list[dict[str, float]]:
    return [{"step": step, "loss": loss} for step, loss in zip(curve.steps, curve.losses, strict=True)]
