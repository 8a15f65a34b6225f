"""How the proposals of each proposer fared in one run: admitted, scored, how well, and at what cost."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from asiarch_hpc.controller.state import RunState, Tally

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class ProposerRow:
    """One proposer. `seconds` are those of its jobs, `tokens` those of its language models."""

    name: str
    proposals: int
    admitted: int
    fitness: tuple[float, ...]
    tokens: int
    seconds: float


def proposer_rows(state: RunState) -> list[ProposerRow]:
    """One row a proposer of candidates, by name; a repaired design counts as a further proposal."""
    fitness: dict[str, list[float]] = {}
    for experiment in state.experiments.values():
        score = state.scores.get(experiment.id)
        if experiment.role == "candidate" and score is not None and score.discarded is None:
            fitness.setdefault(experiment.proposer, []).append(score.fitness)
    names = sorted((set(state.tallies) | set(fitness)) - {"seed", ""})
    return [_row(name, state.tallies.get(name, Tally()), tuple(fitness.get(name, ()))) for name in names]


def side_by_side(rows: list[ProposerRow]) -> Table:
    """The rows as a table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text("proposers"), title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("proposer", "proposals", "admitted", "scored", "fitness", "best", "tokens/scored", "seconds/scored"):
        table.add_column(column, justify="left" if column == "proposer" else "right", no_wrap=True)
    for row in rows:
        scored = len(row.fitness)
        spread = f"±{stdev(row.fitness):.3f}" if scored > 1 else ""
        table.add_row(
            row.name,
            str(row.proposals),
            f"{row.admitted} ({row.admitted / row.proposals:.0%})" if row.proposals else "0",
            str(scored),
            f"{fmean(row.fitness):.3f}{spread}" if scored else "-",
            f"{max(row.fitness):.3f}" if scored else "-",
            f"{row.tokens / scored:,.0f}" if scored else "-",
            f"{row.seconds / scored:.1f}" if scored else "-",
        )
    return table


def _row(name: str, tally: Tally, fitness: tuple[float, ...]) -> ProposerRow:
    return ProposerRow(name, tally.proposals, tally.admitted, fitness, tally.tokens, tally.seconds)
