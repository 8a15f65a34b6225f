"""What people see of a run while it lasts: a live panel in a terminal, plain lines elsewhere.

Rendering is a pure function of a `Snapshot`, so that the controller's own terminal and `make status` on another
machine show the same. rich is imported inside the functions: a controller without a terminal never loads it.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TextIO

from asiarch_hpc.records import BaselineStats, Score
from asiarch_hpc.search.baselines import loss_difference

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

RUNNING_SHOWN = 8
MESSAGES_SHOWN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningJob:
    """One job under way; `seconds` since it started."""

    kind: str
    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """One moment of a run. Everything but the run's name may be missing.

    `counts` are experiments by state, `failures` are by cause. `messages` are the last few of
    `messages_total` ever given, oldest first: things to tell that no other field says (a stale lease, Slurm
    away, a record moved aside). What noise alone does with a chance of `noise_level` counts as noise. `stages` has a
    line for each stage that has begun.
    """

    run: str
    phase: str = ""
    generation: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    running: tuple[RunningJob, ...] = ()
    queued: int = 0
    scored: int = 0
    wanted: int = 0
    best: Score | None = None
    best_name: str = ""
    best_runs: int = 1
    reference: BaselineStats | None = None
    baselines: tuple[BaselineStats, ...] = ()
    noise_level: float = 0.05
    stages: tuple[str, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)
    elapsed: float = 0.0
    left: float | None = None
    messages: tuple[str, ...] = ()
    messages_total: int = 0
    done: bool = False


def duration(seconds: float | None) -> str:
    """Seconds as `7s`, `3m05s`, `2h07m` or `3d04h`; `?` where unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def printable(text: str) -> str:
    """One line without control characters: names and messages come from designs and damaged files."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def render(snapshot: Snapshot, width: int) -> RenderableType:
    """The live view, `width` columns wide."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    lines = [*_headline(snapshot), *_standing(snapshot)]
    parts: list[RenderableType] = [Text(printable(line), overflow="fold") for line in lines]
    if snapshot.running:
        parts.append(_running_table(snapshot))
    if snapshot.failures:
        parts.append(Text(printable(f"failures: {_tally(snapshot.failures)}"), style="yellow", overflow="fold"))
    parts += [Text(printable(message), style="dim", overflow="fold") for message in snapshot.messages[-MESSAGES_SHOWN:]]
    title = Text(printable(f"asiarch {snapshot.run}"))
    return Panel(Group(*parts), title=title, width=max(8, width), title_align="left")


def plain_lines(previous: Snapshot | None, current: Snapshot) -> list[str]:
    """One line for each thing that happened between two snapshots, for logs; nothing when nothing did."""
    before = previous or Snapshot(run=current.run)
    lines: list[str] = []
    ends = current.done and not before.done  # its phase is told last
    if not ends and (previous is None or before.phase != current.phase):
        lines.append(f"{current.run}: {current.phase or 'started'}")
    known = {stats.experiment: stats for stats in before.baselines}
    for stats in current.baselines:
        if known.get(stats.experiment) != stats:
            lines.append(_baseline_line(stats))
    if current.wanted and current.generation is not None and current.generation != before.generation:
        lines.append(f"pool generation {current.generation} is built")
    if current.scored != before.scored:
        left = "" if not current.left else f", about {duration(current.left)} left"
        lines.append(f"scored {current.scored} of {current.wanted}{left}")
    if current.best is not None and (before.best is None or before.best.experiment != current.best.experiment):
        lines.append(_best_line(current))
    lines += [f"stage {line}" for line in current.stages if line not in before.stages]
    for cause, number in sorted(current.failures.items()):
        if number > before.failures.get(cause, 0):
            lines.append(f"failure: {cause} ({number} so far)")
    fresh = max(0, current.messages_total - before.messages_total)
    lines += [*current.messages[-fresh:]] if fresh else []
    if ends:
        scored = f", {current.scored} of {current.wanted} designs scored" if current.wanted else ""
        lines.append(f"{current.run}: {current.phase or 'finished'}{scored}")
    stamp = duration(current.elapsed)
    return [f"[{stamp:>6}] {printable(line)}" for line in lines]


def status_lines(snapshot: Snapshot) -> list[str]:
    """The whole snapshot as plain text, for `make status` into a pipe."""
    lines = [*_headline(snapshot), *_standing(snapshot)]
    lines += [f"{job.kind} {job.name} for {duration(job.seconds)}" for job in snapshot.running]
    if snapshot.failures:
        lines.append(f"failures: {_tally(snapshot.failures)}")
    return [printable(f"asiarch {snapshot.run}"), *(f"  {printable(line)}" for line in [*lines, *snapshot.messages])]


class View(Protocol):
    """Shows snapshots as they come; `close` leaves the terminal usable."""

    def show(self, snapshot: Snapshot) -> None: ...

    def close(self) -> None: ...


class PlainView:
    """One line per event into a stream that is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: Snapshot | None = None
        self._broken = False

    def show(self, snapshot: Snapshot) -> None:
        """Writes what happened since the last call."""
        if self._broken:
            return
        try:
            for line in plain_lines(self._last, snapshot):
                print(line, file=self._stream, flush=True)
        except OSError:  # the pipe or terminal is gone; the run goes on
            self._broken = True
        self._last = snapshot

    def close(self) -> None:
        """Nothing is held open."""


class LiveView:
    """Redraws one panel in a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._broken = False

    def show(self, snapshot: Snapshot) -> None:
        """Draws the snapshot over the last one."""
        if self._broken:
            return
        try:
            self._draw(render(snapshot, self._console.width))
        except OSError:  # the terminal is gone; the run goes on
            self._broken = True

    def close(self) -> None:
        """Leaves the last panel on the screen and the cursor visible."""
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None

    def _draw(self, panel: RenderableType) -> None:
        from rich.live import Live

        if self._live is None:
            # No refresh thread: the controller draws when it has something new.
            self._live = Live(panel, console=self._console, auto_refresh=False, vertical_overflow="ellipsis")
            self._live.start(refresh=True)
        else:
            self._live.update(panel, refresh=True)


def open_view(stream: TextIO) -> View:
    """A live view where `stream` is a terminal that can move its cursor, plain lines anywhere else."""
    _forgive(stream)
    if not stream.isatty():
        return PlainView(stream)
    from rich.console import Console

    console = Console(file=stream)
    return LiveView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView(stream)


def print_to(stream: TextIO, content: RenderableType, *, width: int | None = None) -> None:
    """Prints a rendered view or leaderboard once; colours only in a terminal, 120 columns where there is none."""
    from rich.console import Console

    _forgive(stream)
    columns = width if width is not None or stream.isatty() else 120
    Console(file=stream, width=columns).print(content)


def _forgive(stream: TextIO) -> None:
    """Lets a terminal without Unicode show `?` where it cannot show a character."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def _headline(snapshot: Snapshot) -> list[str]:
    generation = "none yet" if snapshot.generation is None else str(snapshot.generation)
    parts = [f"elapsed {duration(snapshot.elapsed)}"]
    if snapshot.wanted:
        parts = [f"scored {snapshot.scored} of {snapshot.wanted}", f"pool generation {generation}", *parts]
    if not snapshot.done:
        parts.append(f"left {duration(snapshot.left)}")
    lines = [", ".join(parts)]
    if not snapshot.done:
        lines.append(f"jobs: {len(snapshot.running)} running, {snapshot.queued} queued")
    if snapshot.counts:
        lines.append(f"experiments: {_tally(snapshot.counts)}")
    return [snapshot.phase, *lines] if snapshot.phase else lines


def _standing(snapshot: Snapshot) -> list[str]:
    lines = [_baseline_line(stats) for stats in snapshot.baselines]
    if snapshot.reference is None:
        lines.append("no baseline yet: nothing can be compared")
    if snapshot.best is not None:
        lines.append(_best_line(snapshot))
    return [*lines, *(f"stage {line}" for line in snapshot.stages)]


def _baseline_line(stats: BaselineStats) -> str:
    return (
        f"baseline {stats.name}: loss {stats.loss_mean:.4f} ± {stats.loss_sd:.4f}, "
        f"benchmark {stats.benchmark_mean:.3f} ± {stats.benchmark_sd:.3f} over {stats.seeds} seeds"
    )


def _best_line(snapshot: Snapshot) -> str:
    best = snapshot.best
    assert best is not None
    name = snapshot.best_name or best.experiment
    line = f"best found: {name}, fitness {best.fitness:.3f} ± {best.fitness_sd:.3f}, loss {best.loss:.4f}"
    reference = snapshot.reference
    if reference is None or best.experiment == reference.experiment:
        return line
    found = loss_difference(best, snapshot.best_runs, reference, snapshot.baselines, snapshot.noise_level)
    return f"{line} ({found.value:+.4f} ± {found.sd:.4f} against {reference.name}: {found.verdict})"


def _running_table(snapshot: Snapshot) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for job in snapshot.running[:RUNNING_SHOWN]:
        table.add_row(
            Text(printable(job.kind)),
            Text(printable(job.name), overflow="ellipsis", no_wrap=True),
            Text(duration(job.seconds)),
        )
    hidden = len(snapshot.running) - RUNNING_SHOWN
    if hidden > 0:
        table.add_row(Text("…"), Text(f"and {hidden} more"), Text(""))
    return table


def _tally(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number} {key}" for key, number in ordered if number)
