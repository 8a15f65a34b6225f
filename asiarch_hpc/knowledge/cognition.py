"""The cognition base: what papers teach about architectures, one YAML file a paper (ASI-Arch section 3.4 and B.5).

A paper holds one to three cognitions. Each says by which symptoms it is recognised (`triggers`, in the words in which
the Analyst states shortcomings), what to do, why it works, and when not to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from asiarch_hpc.errors import RecordError
from asiarch_hpc.records import from_json

ENTRIES = Path(__file__).resolve().parent / "entries"
TOPICS = (
    "linear_attention", "delta_rule", "state_space", "linear_rnn", "long_convolution", "short_convolution",
    "sparse_attention", "hybrid", "gating", "normalisation", "position", "memory", "test_time_training",
    "feed_forward", "mixture_of_experts", "residual", "attention", "analysis",
)  # fmt: skip
CONCEPTS = (2, 6)  # least and most terms that a paper explains
COGNITIONS = (1, 3)
TRIGGERS = (3, 8)
IDENTIFIER = re.compile(r"\d{4}\.\d{4,5}|[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Paper:
    """What is read. `id` is the arXiv number, or a short name for a paper that is not there."""

    id: str
    title: str
    authors: str
    year: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """What was usual when the paper was written, what that could not do, and the terms that the paper needs."""

    context: str
    limitations: str
    concepts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cognition:
    """One lesson. `formulas` are plain text with shapes where they help; `triggers` are what retrieval searches."""

    insight: str
    topic: str
    triggers: tuple[str, ...]
    algorithm: str
    mechanism: str
    formulas: str
    properties: str
    implementation: str
    conditions: str
    outcomes: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One file: a paper and what it teaches."""

    paper: Paper
    background: Background
    cognitions: tuple[Cognition, ...]


def read_entry(path: Path) -> Entry:
    """Reads and checks one file.

    Raises:
        RecordError: unreadable, not YAML, a missing or unknown field, an unknown topic, an empty text, or a file whose
            name does not begin with the paper's id.
    """
    try:
        entry = parse_entry(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read: {error}") from error
    if not path.stem.startswith(entry.paper.id):
        raise RecordError(f"{path}: paper.id is {entry.paper.id!r}; expected a file name that begins with it")
    return entry


def parse_entry(text: str, *, source: str) -> Entry:
    """Parses the text of an entry.

    Raises:
        RecordError: as `read_entry`.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecordError(f"{source}: not valid YAML: {error}") from error
    entry = from_json(Entry, data, source=source)
    _check(entry, source)
    return entry


@cache
def cognition_base(folder: Path = ENTRIES) -> tuple[Entry, ...]:
    """All entries of a folder in the order of their file names; read once.

    Raises:
        RecordError: a file is not valid, or two describe the same paper.
    """
    entries = tuple(read_entry(path) for path in sorted(folder.glob("*.yaml")))
    seen: dict[str, int] = {}
    for entry in entries:
        if entry.paper.id in seen:
            raise RecordError(f"{folder}: two entries of paper {entry.paper.id}; merge them into one file")
        seen[entry.paper.id] = 1
    return entries


def _check(entry: Entry, source: str) -> None:
    if not IDENTIFIER.fullmatch(entry.paper.id):
        raise RecordError(f"{source}: paper.id {entry.paper.id!r}: expected an arXiv number or a-short-name")
    if not 1940 <= entry.paper.year <= 2100:
        raise RecordError(f"{source}: paper.year {entry.paper.year}: expected a year")
    _count(len(entry.background.concepts), CONCEPTS, f"{source}: background.concepts")
    _count(len(entry.cognitions), COGNITIONS, f"{source}: cognitions")
    for number, cognition in enumerate(entry.cognitions):
        where = f"{source}: cognitions[{number}]"
        if cognition.topic not in TOPICS:
            raise RecordError(f"{where}.topic {cognition.topic!r}: expected one of {', '.join(TOPICS)}")
        _count(len(cognition.triggers), TRIGGERS, f"{where}.triggers")
    for name, text in _texts(entry):
        if not text.strip():
            raise RecordError(f"{source}: {name} is empty; expected a text")


def _count(found: int, limits: tuple[int, int], where: str) -> None:
    if not limits[0] <= found <= limits[1]:
        raise RecordError(f"{where}: found {found}, expected {limits[0]} to {limits[1]}")


def _texts(entry: Entry) -> list[tuple[str, str]]:
    texts: list[tuple[str, Any]] = [
        ("paper.title", entry.paper.title),
        ("paper.authors", entry.paper.authors),
        ("background.context", entry.background.context),
        ("background.limitations", entry.background.limitations),
        *((f"background.concepts.{term}", text) for term, text in entry.background.concepts.items()),
    ]
    for number, cognition in enumerate(entry.cognitions):
        for name in Cognition.__dataclass_fields__:
            value = getattr(cognition, name)
            for text in (value,) if isinstance(value, str) else value:
                texts.append((f"cognitions[{number}].{name}", text))
    return texts
