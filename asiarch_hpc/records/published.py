"""Records of what others published: never a score of this system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from asiarch_hpc.records.codec import SCHEMA_VERSION

Mark = Literal[
    "no_program",  # published without its source text
    "no_parse",  # its source text is not valid Python
    "same_program",  # another design of the import has the same program up to formatting
    "orphan",  # a parent is not in the import
    "nan_loss",  # a published training curve holds NaN or infinity
    "untrained_evaluation",  # the published results are those of untrained weights
    "incomplete",  # the publisher had not finished it
]
Metrics = Mapping[str, float | None]  # one task's published values; None stands for NaN or "N/A"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file that was imported; its bytes are not kept, its hash is."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Substitution:
    """A function of a published program that was replaced by an operation of `kernels/`.

    `error` is the largest of `errors`, the relative differences measured between the two, and below `tolerance`.
    `as_written` is the relative difference with the function's own casts, in `precision`: how the original rounds.
    """

    function: str
    operation: str
    error: float
    tolerance: float
    errors: Mapping[str, float] = field(default_factory=dict)
    as_written: float | None = None
    precision: str = ""
    lengths: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What others published about a design (`published.json`). None of it is a score of this system.

    `key`, `parents` and `references` are the publisher's names; `experiment.json` has the ids. `score` is on the
    publisher's own scale. `results` is {scale: {task: {metric: value}}}, `trials` names the folders of its training
    curves. `substitutions` are those of a design that was derived here from a published one; such a design has no
    published results.
    """

    experiment: str
    origin: str
    key: str
    parents: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    score: float | None = None
    parameters: int | None = None
    results: Mapping[str, Mapping[str, Metrics]] = field(default_factory=dict)
    trials: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    substitutions: tuple[Substitution, ...] = ()
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedRun:
    """`run.json` of a run that was imported: no controller drives it, and nothing of it enters a pool.

    `files` are the hashes of what was read, `notes` what was left out of it, `code` the version of this code.
    """

    kind: Literal["imported"]
    origin: str
    importer_version: int
    files: tuple[SourceFile, ...]
    created: str
    code: str
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
