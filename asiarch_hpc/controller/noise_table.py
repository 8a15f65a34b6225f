"""A noise record for people: seeds, spread, and which differences lie beyond noise."""

from __future__ import annotations

from asiarch_hpc.controller.noise import NoiseRecord
from asiarch_hpc.search import noise
from asiarch_hpc.search.student import noise_multiple

COMPARISONS = ((1, 1), (1, 3), (3, 3), (5, 5))  # seeds of one design against those of the other


def table(record: NoiseRecord) -> list[str]:
    """The lines of the table."""
    stats, scale = record.stats, record.conditions["scale"]
    columns = {
        "loss (nats/token)": [e.loss for e in record.evaluations],
        "benchmark (mean)": [e.benchmark for e in record.evaluations],
        "bits per byte": [e.bits_per_byte for e in record.evaluations],
    }
    lines = [
        f"noise of {stats.name}, width {scale['dim']}, depth {scale['depth']}, {scale['steps']} steps, "
        f"{stats.seeds} seeds",
        _row("seed", list(columns)),
    ]
    for index, evaluation in enumerate(record.evaluations):
        lines.append(_row(evaluation.trial, [f"{column[index]:.4f}" for column in columns.values()]))
    spreads = [noise.spread(column) for column in columns.values()]
    freedom = stats.seeds - 1
    limit = noise_multiple(1.0 - noise.CONFIDENCE, freedom)
    lines += [
        _row("mean", [f"{s.mean:.4f}" for s in spreads]),
        _row("standard deviation", [f"{s.sd:.4f}" for s in spreads]),
        _row("  95 % interval of it", [f"{s.low:.4f} to {s.high:.4f}" for s in spreads]),
        f"smallest difference beyond noise (95 %, {limit:.2f} standard deviations):",
    ]
    for seeds, others in COMPARISONS:
        cells = [f"{noise.least_difference(s.sd, freedom, seeds, others):.4f}" for s in spreads]
        lines.append(_row(f"  {seeds} seed{'s' * (seeds > 1)} against {others}", cells))
    return lines


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<24}" + "".join(f"{cell:>20}" for cell in cells)
