"""What every importer yields: designs with their published results, before they have a place in the store.

Each importer module offers `read(path: Path) -> PublishedRun`: it reads the file or folder that the user names, and
`jobs.import_run.write` makes a run folder of the result. Nothing here is executed or believed: program texts are
data, scores are what somebody else wrote. What does not have the published form raises RecordError, which names the
file, the record's number, the field, what was found and what was expected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asiarch_hpc.errors import RecordError
from asiarch_hpc.records import Json, Mark, Metrics, SourceFile

ID_DIGITS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A published training curve: equally many steps and losses (nats per token). NaN is kept as it was published."""

    steps: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedDesign:
    """One design as its authors published it.

    Attributes:
        key: unique in the import and stable between imports of the same data (ASI-Arch: the index as text;
            Genesys: the design's acronym). Parents and references are named by it.
        name: what its authors call it; need not be unique.
        source: text of one Python file, unmodified (it becomes `architecture.py` byte for byte), or None.
        units: JSON form of a unit tree (it becomes `units.json`), or None.
        motivation: the authors' text, Markdown; "" where there is none.
        parents: keys that it was derived from. A key that is not in the import is kept and the design marked "orphan"
            by the writer.
        references: keys of designs that inspired it; those not in the import are kept in `published.json` alone.
        score: as published, on the publisher's own scale; None where there is none. Never one of our scores.
        parameters: total parameters as published, or None.
        results: {scale: {task: {metric: value}}}, None where the publisher printed NaN or "N/A".
        curves: {scale: curve}; each becomes `trials/published-<scale>/curves.zarr.zip`. Scale names are letters,
            digits, "_", "-" and ".".
        marks: what a reader must know before believing a number (`records.Mark`). "no_program", "no_parse",
            "same_program", "orphan" and "nan_loss" are added by the writer, importers give only the others.
        metadata: anything else worth keeping, as JSON without NaN (titles, summaries, ratings, costs).
    """

    key: str
    name: str
    source: str | None = None
    units: Json | None = None
    motivation: str = ""
    parents: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    score: float | None = None
    parameters: int | None = None
    results: Mapping[str, Mapping[str, Metrics]] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    metadata: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRun:
    """Everything that one import read.

    `origin` is the importer's name ("asi-arch", "genesys"), `version` its number, which rises when its output changes.
    `notes` are lines for the user: files and fields that were left out.
    """

    origin: str
    version: int
    files: tuple[SourceFile, ...]
    designs: tuple[PublishedDesign, ...]
    notes: tuple[str, ...] = ()


def identifier(origin: str, key: str) -> str:
    """Id of a design that has no program of its own: 16 hexadecimal digits of the SHA-256 of origin and key.

    Designs with a program have `designs.hashing.design_id` as everywhere else. Neither depends on which of the
    publisher's files the design was read from.
    """
    return hashlib.sha256(f"{origin}\n{key}".encode()).hexdigest()[:ID_DIGITS]


def read_source(path: Path) -> tuple[bytes, SourceFile]:
    """A file's bytes, with the name and hash under which the run remembers it.

    Raises:
        RecordError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); expected a published file") from error
    return data, SourceFile(name=path.name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
