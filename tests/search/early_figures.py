"""What early stopping would have saved and lost, from full curves: `make bench ARGS="early [RUN …]"`.

The designs of each source arrive in random orders, in batches; a batch is held against all designs before it, as far
as they came. Time is what the steps of each training took, so that a slow design that is stopped saves more; published
curves have none, and their steps stand for it. Intervals resample the designs. How many of the best were lost is known
for as many of the best as there are, and no better: the last column is the loss that these curves cannot rule out.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scipy import stats

from asiarch_hpc.config import EarlyStoppingConfig
from asiarch_hpc.controller import run
from asiarch_hpc.errors import AsiarchError
from asiarch_hpc.importers import asi_arch, genesys
from asiarch_hpc.importers.published import Curve
from asiarch_hpc.search.early_stopping import loss_limit, pooled_sd, rung_steps, smoothed, window_steps
from asiarch_hpc.store.curves import read_curves
from asiarch_hpc.store.experiments import scan
from asiarch_hpc.store.layout import RunLayout

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "published"
BATCH, TOP, DRAWS = 10, 0.1, 400
ACCEPTED = 0.02  # share of the best that may be lost before early stopping is recommended
LEAST = 2 * EarlyStoppingConfig().curves  # designs that a source must have to be judged
COLUMNS = (
    *("rungs", "keep", "margin", "stopped", "steps saved", "time saved"),
    *("best lost by loss", "by score", "not ruled out"),
)
SETTINGS = [
    EarlyStoppingConfig(rungs=rungs, keep=keep, margin=margin)
    for rungs in ([0.25], [0.5], [0.75], [0.25, 0.5, 0.75])
    for keep in (0.5, 0.75)
    for margin in (0.0, 3.0)
]


@dataclass(frozen=True)
class Source:
    """Full curves of one origin: losses at `steps` equal steps, the final loss, and the score where there is one.

    `seconds` are those of each step, where they are known.
    """

    name: str
    steps: int
    curves: list[list[float]]
    final: list[float]
    score: list[float] | None = None
    baselines: list[list[list[float]]] = field(default_factory=list)
    seconds: list[list[float]] | None = None


@dataclass(frozen=True)
class Judged:
    """Shares: of the designs that were stopped, of the steps and of the training time saved (NaN where times are not
    known), of the best by loss and by score that were lost."""

    stopped: float
    saved: float
    saved_time: float
    lost_loss: float
    lost_score: float


def main(arguments: Sequence[str]) -> None:
    """Tables of all sources that are here: published curves, and the runs named (else those under results/)."""
    sources = [source for source in find_sources(arguments) if len(source.curves) >= LEAST]
    if not sources:
        print(f"no source with {LEAST} full curves; expected {PUBLISHED}, or a run's folder as argument")
    found: dict[str, list[tuple[float, float]]] = {}
    for source in sources:
        print(f"\n{source.name}: {len(source.curves)} full curves, {top_count(len(source.curves))} of them the best")
        correlations(source)
        if source.seconds is None:
            print("  no times are known of these curves: their steps stand for GPU time")
        print(f"| {' | '.join(COLUMNS)} |")
        print(f"| {' | '.join('---' for _ in COLUMNS)} |")
        for config in SETTINGS:
            if config.margin and not source.baselines:
                continue  # no seeds, no noise to have a margin of
            name, lost, bound = setting(source, config)
            found.setdefault(name, []).append((lost, bound))
    fit = [
        name
        for name, rows in found.items()
        if all(lost < ACCEPTED for lost, _ in rows) and any(bound < ACCEPTED for _, bound in rows)
    ]
    needed = math.ceil(math.log(0.05) / math.log(1 - ACCEPTED) / TOP)
    print(f"\nshown to lose under {ACCEPTED:.0%} of the best: {'; '.join(fit) or 'no setting'}")
    print(f"(one that loses none of the best would need about {needed} full curves of one source to show it)")


def setting(source: Source, config: EarlyStoppingConfig) -> tuple[str, float, float]:
    """Prints a row; returns the setting's name, what it loses by loss, and the upper bound of that."""
    rng = random.Random(0)
    everyone = range(len(source.curves))
    values, limits = at_rungs(source, config), references(source, config)
    found = [judge(source, config, values, limits, shuffled(everyone, rng)) for _ in range(DRAWS)]
    resampled = [
        judge(source, config, values, limits, shuffled(rng.choices(everyone, k=len(everyone)), rng))
        for _ in range(DRAWS)
    ]
    lost, best = statistics.fmean(one.lost_loss for one in found), top_count(len(source.curves))
    bound = float(stats.beta.ppf(0.95, lost * best + 1, best * (1 - lost))) if lost < 1 else 1.0
    name = f"rungs {config.rungs}, keep {config.keep:g}, margin {config.margin:g}"
    cells = [
        " ".join(f"{rung:g}" for rung in config.rungs),
        f"{config.keep:g}",
        f"{config.margin:g}" if source.baselines else "none",
        f"{statistics.fmean(one.stopped for one in found):.0%}",
        interval([one.saved for one in found], [one.saved for one in resampled]),
        interval([one.saved_time for one in found], [one.saved_time for one in resampled]) if source.seconds else "-",
        interval([one.lost_loss for one in found], [one.lost_loss for one in resampled]),
        interval([one.lost_score for one in found], [one.lost_score for one in resampled]) if source.score else "-",
        f"{bound:.0%}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)
    return name, lost, bound


def judge(
    source: Source,
    config: EarlyStoppingConfig,
    values: list[list[float | None]],
    limits: list[tuple[float, float]],
    order: Sequence[int],
) -> Judged:
    """One arrival of the designs in an order, in which some may stand twice."""
    steps = rung_steps(source.steps, config)
    reached: list[list[float]] = [[] for _ in steps]
    stopped: dict[int, int] = {}  # place in the order -> step
    for begin in range(0, len(order), BATCH):
        batch = range(begin, min(begin + BATCH, len(order)))
        bars = [loss_limit(reached[rung], *limits[rung], config) for rung in range(len(steps))]
        for place in batch:
            for rung, step in enumerate(steps):
                value, bar = values[order[place]][rung], bars[rung]
                if value is None:
                    continue
                reached[rung].append(value)
                if bar is not None and not value < bar:
                    stopped[place] = step
                    break
    saved = sum(source.steps - step for step in stopped.values()) / (source.steps * len(order))

    def lost(quality: Sequence[float]) -> float:
        best = sorted(range(len(order)), key=lambda place: quality[order[place]])[: top_count(len(order))]
        return sum(place in stopped for place in best) / len(best)

    by_score = lost([-score for score in source.score]) if source.score else math.nan
    time = saved_time(source.seconds, order, stopped) if source.seconds else math.nan
    return Judged(len(stopped) / len(order), saved, time, lost(source.final), by_score)


def saved_time(seconds: list[list[float]], order: Sequence[int], stopped: Mapping[int, int]) -> float:
    """The share of all trainings' seconds that the steps take which stopped ones are spared."""
    spared = math.fsum(math.fsum(seconds[order[place]][step:]) for place, step in stopped.items())
    return spared / math.fsum(math.fsum(seconds[index]) for index in order)


def at_rungs(source: Source, config: EarlyStoppingConfig) -> list[list[float | None]]:
    """The smoothed loss of each design at each rung."""
    window = window_steps(source.steps, config)
    return [[smoothed(curve, step, window) for step in rung_steps(source.steps, config)] for curve in source.curves]


def references(source: Source, config: EarlyStoppingConfig) -> list[tuple[float, float]]:
    """The reference's loss and the noise at each rung; without baselines, nothing that holds a design back."""
    found = []
    window = window_steps(source.steps, config)
    for step in rung_steps(source.steps, config):
        seeds = [[smoothed(curve, step, window) or math.nan for curve in baseline] for baseline in source.baselines]
        found.append((statistics.fmean(seeds[0]), pooled_sd(seeds)) if seeds else (-math.inf, 0.0))
    return found


def correlations(source: Source) -> None:
    """How well the loss after a share of the steps orders the designs as their ends do (Spearman)."""
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        config = EarlyStoppingConfig(rungs=[share])
        losses = [row[0] if row and row[0] is not None else math.nan for row in at_rungs(source, config)]
        text = f"final loss {float(stats.spearmanr(losses, source.final).statistic):.2f}"
        if source.score:
            text += f", score {-float(stats.spearmanr(losses, source.score).statistic):.2f}"
        print(f"  rank correlation of the loss at {share:.0%} of the steps with: {text}")


def find_sources(arguments: Sequence[str]) -> Iterator[Source]:
    """Published curves and runs; each reads what is there."""
    if PUBLISHED.is_dir():
        gallery = [d for d in asi_arch.read(PUBLISHED / "asi_arch" / "106_metrics.jsonl").designs if d.curves]
        sound = [d for d in gallery if all(map(math.isfinite, d.curves["340M"].losses))]
        curves = [resampled_curve(design.curves["340M"], 20) for design in sound]
        scores = [design.score or math.nan for design in sound]
        yield Source("ASI-Arch's gallery at 340M", 20, curves, [curve[-1] for curve in curves], scores)
        designs = genesys.read(PUBLISHED / "genesys").designs
        for scale in ("14M", "31M", "70M"):
            curves = [resampled_curve(d.curves[scale], 100) for d in designs if scale in d.curves]
            yield Source(f"Genesys at {scale}", 100, curves, [curve[-1] for curve in curves])
    roots = [Path(word) for word in arguments] or sorted(
        path.parent for path in Path("results").glob("*/journal.jsonl")
    )
    for root in roots:
        yield of_run(RunLayout(root.absolute()))


def resampled_curve(curve: Curve, points: int) -> list[float]:
    """The last known loss at each of `points` equal shares of the curve's steps."""
    last = max(curve.steps)
    known = sorted(zip(curve.steps, curve.losses, strict=True))
    found = []
    for point in range(1, points + 1):
        before = [loss for step, loss in known if step <= last * point / points]
        found.append(before[-1] if before else known[0][1])
    return found


def of_run(layout: RunLayout) -> Source:
    """The scored candidates of a run; their final loss is that on held-out text.

    Raises:
        AsiarchError: no run, or one that stopped designs itself, so that its curves are not full.
    """
    config = run.read_config(layout)
    if config.search.early_stopping.rungs:
        raise AsiarchError(f"{layout.root}: this run stopped designs early; curves of one that did not were expected")
    scored = [e for e in scan(layout, moved=False).experiments if e.score is not None and e.score.discarded is None]
    seeds = [f"{config.scale.name}-s{seed}" for seed in config.baselines.seeds]
    names = {config.baselines.reference: 0}

    def curve(identifier: str, trial: str, column: str = "loss") -> list[float]:
        return [float(v) for v in read_curves(layout.experiment(identifier).trial(trial).curves, column)[column]]

    candidates = [(e.record.id, e.score) for e in scored if e.record.role == "candidate" and e.score is not None]
    baselines = [e.record for e in scored if e.record.role == "baseline"]
    first = f"{config.scale.name}-s{config.scale.seeds[0]}"
    return Source(
        f"run {layout.name} ({config.scale.name}: width {config.scale.dim}, depth {config.scale.depth})",
        config.scale.steps,
        [curve(identifier, first) for identifier, _ in candidates],
        [score.loss for _, score in candidates],
        [score.fitness for _, score in candidates],
        [
            [curve(record.id, seed) for seed in seeds]
            for record in sorted(baselines, key=lambda r: names.get(r.name, 1))
        ],
        [curve(identifier, first, "step_seconds") for identifier, _ in candidates],
    )


def top_count(count: int) -> int:
    """How many of so many are the best."""
    return max(1, round(TOP * count))


def shuffled(places: Sequence[int], rng: random.Random) -> list[int]:
    return rng.sample(list(places), k=len(places))


def interval(found: Sequence[float], resampled: Sequence[float]) -> str:
    """Mean, with the middle 95 % of the resampled values."""
    ordered = sorted(resampled)
    low, high = ordered[int(0.025 * len(ordered))], ordered[int(0.975 * len(ordered)) - 1]
    return f"{statistics.fmean(found):.0%} [{low:.0%}, {high:.0%}]"
