"""The leaderboard of a run: the best designs beside the baselines, with the noise of every comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asiarch_hpc.controller.view import printable
from asiarch_hpc.records import BaselineStats, Role, Score
from asiarch_hpc.search.baselines import loss_difference

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDE, MEDIUM = 118, 74  # columns of a terminal below which less important figures are left out


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaderRow:
    """One scored experiment for the leaderboard. `runs` is the number of trials behind its means."""

    score: Score
    name: str
    role: Role = "candidate"
    runs: int = 1
    parameters: int | None = None
    modelled_seconds_per_token: float | None = None
    tokens_per_second: float | None = None


def leaderboard(
    rows: Sequence[LeaderRow],
    *,
    reference: BaselineStats | None,
    baselines: Sequence[BaselineStats] = (),
    noise_factor: float = 2.8,
    top: int = 10,
    width: int = 120,
) -> RenderableType:
    """The best `top` candidates by fitness, and all baselines, ranked together."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    kept = _kept(rows, top)
    if not kept:
        return Text("no scored design yet", overflow="fold")
    name = reference.name if reference is not None else "reference"
    table = Table(title=Text("leaderboard"), title_justify="left", width=max(8, width) if width < MEDIUM else None)
    headers = _headers(name, width)
    for header, right in headers.items():
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    for rank, row in kept:
        cells = _cells(rank, row, reference, baselines, noise_factor)
        style = "cyan" if row.role == "baseline" else ""
        table.add_row(*(Text(printable(cells[header])) for header in headers), style=style)
    notes = _notes(rows, kept, reference, baselines, noise_factor)
    return Group(table, *(Text(printable(note), style="dim", overflow="fold") for note in notes))


def _kept(rows: Sequence[LeaderRow], top: int) -> list[tuple[int, LeaderRow]]:
    """Ranks among all rows. A fitness that is no number, or a discarded design, ranks nowhere."""
    sound = [r for r in rows if math.isfinite(r.score.fitness) and r.score.discarded is None]
    ranked = list(enumerate(sorted(sound, key=lambda r: (-r.score.fitness, r.score.experiment)), start=1))
    shown = {row.score.experiment for row in [r for _, r in ranked if r.role == "candidate"][:top]}
    return [(rank, row) for rank, row in ranked if row.role == "baseline" or row.score.experiment in shown]


def _headers(reference: str, width: int) -> Mapping[str, bool]:
    """Column titles that fit, with whether they are aligned to the right."""
    difference = f"Δ loss vs {reference}"
    every = {
        "#": True, "name": False, "id": False, "fitness": True, "loss": True, "bits/byte": True, difference: True,
        "verdict": False, "bench": True, "params": True, "speed": True,
    }  # fmt: skip
    if width >= WIDE:
        return every
    kept = ("#", "name", "fitness", "loss", difference, "verdict") if width >= MEDIUM else ("#", "name", "fitness")
    return {header: every[header] for header in kept}


def _cells(
    rank: int, row: LeaderRow, reference: BaselineStats | None, baselines: Sequence[BaselineStats], factor: float
) -> dict[str, str]:
    score = row.score
    difference, verdict = "", ""
    if reference is not None:
        found = loss_difference(score, row.runs, reference, baselines, factor)
        verdict = found.verdict
        difference = "" if verdict == "reference" else f"{found.value:+.4f} ± {found.sd:.4f}"
    speeds = []
    modelled = row.modelled_seconds_per_token
    if modelled and reference is not None and reference.modelled_seconds_per_token > 0:
        speeds.append(f"{reference.modelled_seconds_per_token / modelled:.2f}x")
    if row.tokens_per_second:
        speeds.append(f"{row.tokens_per_second:,.0f} tok/s")
    return {
        "#": str(rank),
        "name": f"{row.name} (baseline)" if row.role == "baseline" else row.name,
        "id": score.experiment[:8],
        "fitness": f"{score.fitness:.3f} ± {score.fitness_sd:.3f}",
        "loss": f"{score.loss:.4f}",
        "bits/byte": f"{score.bits_per_byte:.4f}",
        f"Δ loss vs {reference.name if reference is not None else 'reference'}": difference,
        "verdict": verdict,
        "bench": f"{score.benchmark:.3f}",
        "params": "?" if row.parameters is None else _thousands(row.parameters),
        "speed": " ".join(speeds) or "?",
    }


def _notes(
    rows: Sequence[LeaderRow],
    kept: Sequence[tuple[int, LeaderRow]],
    reference: BaselineStats | None,
    baselines: Sequence[BaselineStats],
    factor: float,
) -> list[str]:
    """What a reader must know to take the table for what it is."""
    if reference is None:
        return ["no baseline statistics: these numbers cannot be compared with anything"]
    verdicts = [
        loss_difference(row.score, row.runs, reference, baselines, factor).verdict
        for _, row in kept
        if row.role == "candidate"
    ]
    candidates = sum(row.role == "candidate" for row in rows)
    notes = [
        f"± is one standard deviation from the baselines' seeds; a loss within {factor:g} of them of "
        f"{reference.name}'s is called within noise.",
    ]
    if candidates > 1:
        notes.append(
            f"The first places are the best of {candidates} designs, chosen after the fact: expect part of their lead "
            "to be luck, and train them with further seeds before believing it."
        )
    if discarded := sum(row.score.discarded is not None for row in rows):
        notes.append(f"{discarded} designs were discarded as leaks and have no rank.")
    if verdicts and "better" not in verdicts:
        notes.insert(0, f"No design shown here has a loss below {reference.name}'s by more than the noise.")
    sources = sorted({row.score.judgement.source for row in rows})
    if sources == ["rule"]:
        notes.append("The judge's third of the fitness comes from a rule on speed and size, not from a language model.")
    return notes


def _thousands(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return str(number)
