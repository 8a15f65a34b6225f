"""The leaderboard of a run: the best designs beside the baselines, with the noise of every comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asiarch_hpc.controller.view import printable
from asiarch_hpc.records import BaselineStats, Role, Score
from asiarch_hpc.search.baselines import Difference, loss_difference
from asiarch_hpc.search.student import two_sided_p

if TYPE_CHECKING:
    from rich.console import RenderableType

NARROW, WIDE, WIDEST = 70, 115, 128  # columns of a terminal below which less important figures are left out
LEFT = ("name", "id", "verdict")
LEAST_P = 1e-12  # smaller ones are not exact


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
    noise_level: float = 0.05,
    top: int = 10,
    width: int = 120,
    title: str = "leaderboard",
    legend: bool = True,
) -> RenderableType:
    """The best `top` candidates by fitness, and all baselines, ranked together; all of one scale. `legend` false: what
    holds for every table is left out."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    kept = _kept(rows, top)
    if not kept:
        return Text(f"{title}: no scored design yet", overflow="fold")
    table = Table(title=Text(printable(title)), title_justify="left", box=None, padding=(0, 1, 0, 0))
    columns = _columns(width)
    for column in columns:
        folds = width < NARROW or column == "name"
        table.add_column(
            column,
            justify="left" if column in LEFT else "right",
            no_wrap=not folds,
            overflow="fold" if folds else "ellipsis",
        )
    for rank, row in kept:
        cells = _cells(rank, row, reference, baselines, noise_level)
        style = "cyan" if row.role == "baseline" else ""
        table.add_row(*(Text(printable(cells[column])) for column in columns), style=style)
    notes = [*_findings(rows, kept, reference, baselines, noise_level)]
    if legend and reference is not None:
        notes += _legend(rows, reference, noise_level)
    return Group(table, *(Text(printable(note), style="dim", overflow="fold") for note in notes))


def _kept(rows: Sequence[LeaderRow], top: int) -> list[tuple[int, LeaderRow]]:
    """Ranks among all rows. A fitness that is no number, or a discarded design, ranks nowhere."""
    sound = [r for r in rows if math.isfinite(r.score.fitness) and r.score.discarded is None]
    ranked = list(enumerate(sorted(sound, key=lambda r: (-r.score.fitness, r.score.experiment)), start=1))
    shown = {row.score.experiment for row in [r for _, r in ranked if r.role == "candidate"][:top]}
    return [(rank, row) for rank, row in ranked if row.role == "baseline" or row.score.experiment in shown]


def _columns(width: int) -> tuple[str, ...]:
    """Titles of the columns that fit."""
    if width < NARROW:
        return ("#", "name", "fitness")
    if width < WIDE:
        return ("#", "name", "fitness", "loss", "Δ loss", "verdict")
    every = ("#", "name", "id", "fitness", "loss", "bits/byte", "Δ loss", "verdict", "bench", "params", "speed")
    return (*every, "tokens/s") if width >= WIDEST else every


def _cells(
    rank: int, row: LeaderRow, reference: BaselineStats | None, baselines: Sequence[BaselineStats], level: float
) -> dict[str, str]:
    score = row.score
    difference, verdict = "", ""
    if reference is not None:
        found = loss_difference(score, row.runs, reference, baselines, level)
        verdict = found.verdict
        difference = "" if verdict == "reference" else f"{found.value:+.4f}±{found.sd:.4f}"
    speed, modelled = "?", row.modelled_seconds_per_token
    if modelled and reference is not None and reference.modelled_seconds_per_token > 0:
        speed = f"{reference.modelled_seconds_per_token / modelled:.2f}x"
    return {
        "#": str(rank),
        "name": f"{row.name}*" if row.role == "baseline" else row.name,
        "id": score.experiment[:8],
        "fitness": f"{score.fitness:.3f}±{score.fitness_sd:.3f}",
        "loss": f"{score.loss:.4f}",
        "bits/byte": f"{score.bits_per_byte:.4f}",
        "Δ loss": difference,
        "verdict": verdict,
        "bench": f"{score.benchmark:.3f}",
        "params": "?" if row.parameters is None else _thousands(row.parameters),
        "speed": speed,
        "tokens/s": "?" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
    }


def _findings(
    rows: Sequence[LeaderRow],
    kept: Sequence[tuple[int, LeaderRow]],
    reference: BaselineStats | None,
    baselines: Sequence[BaselineStats],
    level: float,
) -> list[str]:
    """What the table shows, and what it does not."""
    if reference is None:
        return ["no baseline statistics: these numbers cannot be compared with anything"]
    chosen = [row for _, row in kept if row.role == "candidate"]
    differences = [loss_difference(row.score, row.runs, reference, baselines, level) for row in chosen]
    candidates = sum(row.role == "candidate" for row in rows)
    notes = [_test_of_the_best(chosen[0], differences[0], reference)] if differences else []
    if differences and all(found.verdict != "better" for found in differences):
        notes.append(f"No design shown here has a loss below {reference.name}'s by more than the noise.")
    if candidates > 1:
        notes.append(
            f"The first places are the best of {candidates} designs, chosen after the fact: expect part of their lead "
            "to be luck, and train them with further seeds before believing it."
        )
    if discarded := sum(row.score.discarded is not None for row in rows):
        notes.append(f"Discarded as leaks, and without a rank: {discarded}.")
    return notes


def _legend(rows: Sequence[LeaderRow], reference: BaselineStats, level: float) -> list[str]:
    """What the columns mean, and where the grades come from."""
    notes = [
        f"* baseline. loss: nats a token of held-out text. Δ loss: against {reference.name}, ± one standard deviation "
        f"from the baselines' seeds; better and worse: noise alone would do that in less than {100 * level:g} % of "
        "comparisons. bench: mean accuracy of the tasks. params: without embedding and head. speed: modelled, relative "
        f"to {reference.name}.",
    ]
    sources = sorted({row.score.judgement.source for row in rows})
    if sources == ["rule"]:
        notes.append("The judge's third of the fitness comes from a rule on speed and size, not from a language model.")
    if "llm" in sources:
        notes.append(
            "The judge's third of the fitness is the median of several gradings by a language model, whose anchors are "
            "the baselines; assessment.json has the spread."
        )
    return notes


def _test_of_the_best(row: LeaderRow, found: Difference, reference: BaselineStats) -> str:
    """Whether the first design's loss differs from the reference's by more than training noise."""
    words = {
        "better": f"better than {reference.name} beyond noise",
        "worse": f"worse than {reference.name} beyond noise",
        "within noise": f"no better and no worse than {reference.name} within noise",
    }
    p, verdict = two_sided_p(found.t, found.freedom), words.get(found.verdict, found.verdict)
    chance = f"p = {p:.2g}" if not p < LEAST_P else f"p < {LEAST_P:g}"
    return (
        f"The first design, {row.name}: its loss differs by {found.value:+.4f} from {reference.name}'s, t = "
        f"{found.t:.2f}, {found.freedom} degrees of freedom, {row.runs} against {reference.seeds} trainings, "
        f"{chance} for one comparison (noise is |t| up to {found.limit:.2f}): {verdict}."
    )


def _thousands(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return str(number)
