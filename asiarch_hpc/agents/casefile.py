"""What agents are told about a design: everything that the run knows of it, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from asiarch_hpc.records import Analysis, BaselineStats, GateReport, Score, TaskScore

CURVE_POINTS = 12


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A cognition that was retrieved for a design, with all that it teaches."""

    paper: str
    title: str
    insight: str
    algorithm: str
    mechanism: str
    formulas: str
    implementation: str
    conditions: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class CaseFile:
    """One design with its results. What is not known is None or empty."""

    id: str
    name: str
    role: str
    form: str
    motivation: str
    source: str
    gate: GateReport | None = None
    score: Score | None = None
    loss: float | None = None
    bits_per_byte: float | None = None
    benchmark: float | None = None
    tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    curve: Sequence[tuple[int, float]] = ()
    analysis: Analysis | None = None
    lessons: Sequence[Lesson] = ()


@dataclass(frozen=True, kw_only=True)
class Standard:
    """What every design of the run is held against: the baselines' means with their spread, reference first."""

    baselines: Sequence[BaselineStats]
    tasks: Mapping[str, Mapping[str, tuple[float, float]]]  # baseline -> task -> mean, sample standard deviation

    @property
    def reference(self) -> BaselineStats:
        return self.baselines[0]


def thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A training curve at a dozen steps, the first and the last among them."""
    if len(curve) <= CURVE_POINTS:
        return list(curve)
    places = [round(i * (len(curve) - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]
    return [curve[place] for place in places]
