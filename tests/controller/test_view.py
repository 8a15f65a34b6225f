"""What people see: complete, honest about noise, and never a reason for the run to end."""

import contextlib
import io
import os
import pty
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from asiarch_hpc.controller.leaderboard import LeaderRow, leaderboard
from asiarch_hpc.controller.view import (
    LiveView,
    PlainView,
    RunningJob,
    Snapshot,
    duration,
    open_view,
    plain_lines,
    print_to,
    render,
    status_lines,
)
from asiarch_hpc.records import BaselineStats, Judgement, Score

REFERENCE = BaselineStats(
    experiment="d" * 16,
    name="delta_net",
    seeds=3,
    loss_mean=4.5,
    loss_sd=0.01,
    benchmark_mean=0.3,
    benchmark_sd=0.01,
    bits_per_byte_mean=2.0,
    bits_per_byte_sd=0.01,
    flops_per_token=3e5,
    modelled_seconds_per_token=2e-6,
    time_exponent=1.0,
    parameters=150_000,
)
UPPER = replace(REFERENCE, experiment="9" * 16, name="gated_delta_net", loss_mean=4.45)


def score_of(experiment: str, fitness: float = 0.6, loss: float = 4.3, **changes: Any) -> Score:
    values: dict[str, Any] = {
        "experiment": experiment,
        "fitness": fitness,
        "fitness_sd": 0.021,
        "loss_part": 0.5,
        "benchmark_part": 0.5,
        "judge_part": 0.5,
        "loss": loss,
        "bits_per_byte": 2.01,
        "benchmark": 0.312,
        "judgement": Judgement(raw=5.0, source="rule", version="rule/1"),
        "formula": "asi_arch/1",
    }
    return Score(**{**values, **changes})


FULL = Snapshot(
    run="laptop",
    phase="searching",
    generation=2,
    counts={"training": 2, "scored": 11, "rejected": 3},
    running=tuple(RunningJob(kind="train", name=f"mixer_{i} s0", seconds=61.0 * i) for i in range(12)),
    queued=4,
    scored=11,
    wanted=24,
    best=score_of("a" * 16, loss=4.3),
    best_name="gated_mixer",
    reference=REFERENCE,
    baselines=(REFERENCE, UPPER),
    failures=Counter({"gate: not causal": 2, "training: loss not finite": 1}),
    elapsed=125.0,
    left=200.0,
    messages=("record moved aside",),
    messages_total=1,
)


def drawn(content: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(content)
    return console.file.getvalue()


def test_the_panel_says_everything() -> None:
    text = drawn(render(FULL, 120))
    for part in (
        "laptop",
        "searching",
        "scored 11 of 24",
        "generation 2",
        "12 running, 4 queued",
        "and 4 more",
        "mixer_3 s0",
        "3m03s",
        "baseline gated_delta_net: loss 4.4500 ± 0.0100",
        "best found: gated_mixer, fitness 0.600 ± 0.021",
        "-0.2000 ± 0.0115 against delta_net: better",
        "2 gate: not causal",
        "left 3m20s",
        "record moved aside",
    ):
        assert part in text, part


def test_a_small_lead_is_called_noise() -> None:
    assert "within noise" in drawn(render(replace(FULL, best=score_of("a" * 16, loss=4.48)), 120))
    lonely = replace(FULL, reference=replace(REFERENCE, seeds=1), baselines=())
    assert "noise unknown" in drawn(render(lonely, 120))
    assert "nothing can be compared" in drawn(render(Snapshot(run="x", best=score_of("a" * 16)), 120))


blanks = {f.name: getattr(Snapshot(run=""), f.name) for f in fields(Snapshot) if f.name != "run"}


@settings(deadline=None, max_examples=60)
@given(
    st.sets(st.sampled_from(sorted(blanks))),
    st.integers(-5, 200),
    st.text(max_size=20),
    st.sampled_from([float("nan"), float("inf"), -3.0, 1e30]),
)
def test_no_snapshot_and_no_width_is_fatal(missing: set[str], width: int, text: str, number: float) -> None:
    odd = replace(
        FULL,
        run=text,
        best=score_of("a" * 16, loss=number, fitness=number),
        best_name=text,
        messages=(text, "\x1b[2J[bold]", "\ud800"),
        messages_total=9,
        elapsed=number,
    )
    snapshot = replace(odd, **{name: blanks[name] for name in missing})
    out = drawn(render(snapshot, width), max(1, width))
    lines = [*plain_lines(None, snapshot), *plain_lines(FULL, snapshot), *status_lines(snapshot)]
    assert "\x1b" not in out + "".join(lines)
    assert all("\n" not in line for line in lines)
    rows = [LeaderRow(score=score_of("a" * 16, fitness=number), name=text), LeaderRow(score=score_of("b"), name=text)]
    drawn(leaderboard(rows, reference=snapshot.reference, width=width), max(1, width))


def test_plain_lines_tell_each_event_once() -> None:
    assert plain_lines(FULL, FULL) == []
    assert plain_lines(FULL, replace(FULL, elapsed=300.0, running=(), queued=0, left=1.0)) == []
    start = Snapshot(run="laptop", wanted=24)
    first = plain_lines(None, start)
    assert first == ["[    0s] laptop: started"]
    lines = plain_lines(start, FULL)
    assert lines[0] == "[ 2m05s] laptop: searching"
    assert sum("baseline" in line for line in lines) == 2
    assert len(lines) == 1 + 2 + 1 + 1 + 1 + 2 + 1
    later = replace(FULL, scored=12, failures={**FULL.failures, "gate: not causal": 3}, elapsed=126.0)
    assert plain_lines(FULL, later) == [
        "[ 2m06s] scored 12 of 24, about 3m20s left",
        "[ 2m06s] failure: gate: not causal (3 so far)",
    ]
    end = replace(
        later, phase="finished: complete", done=True, messages=("record moved aside", "Slurm is back"), messages_total=2
    )
    told = [line[9:] for line in plain_lines(later, end)]
    assert told == ["Slurm is back", "laptop: finished: complete, 12 of 24 designs scored"]
    assert plain_lines(end, end) == []


def test_a_run_that_searches_nothing_counts_no_designs() -> None:
    noise = Snapshot(run="noise", phase="finished: complete", done=True, elapsed=7.0)
    assert plain_lines(None, noise) == ["[    7s] noise: finished: complete"]
    assert status_lines(noise)[:3] == ["asiarch noise", "  finished: complete", "  elapsed 7s"]


def rows_of(number: int) -> list[LeaderRow]:
    rows = [
        LeaderRow(
            score=score_of(f"{i:016x}", fitness=0.7 - i / 100, loss=4.3 + i / 50),
            name=f"design_{i}",
            parameters=150_000 + i,
            modelled_seconds_per_token=1e-6,
            tokens_per_second=12_345.6,
        )
        for i in range(number)
    ]
    baselines = [(REFERENCE, 0.48), (UPPER, 0.55)]
    return rows + [
        LeaderRow(score=score_of(b.experiment, f, b.loss_mean), name=b.name, role="baseline", runs=3)
        for b, f in baselines
    ]


def test_leaderboard_shows_ten_and_the_baselines() -> None:
    text = drawn(leaderboard(rows_of(30), reference=REFERENCE, baselines=(REFERENCE, UPPER), width=150), 150)
    assert "design_9" in text
    assert "design_10" not in text
    for part in (
        " delta_net*",
        "gated_delta_net*",
        "reference",
        "0.700±0.021",
        "-0.2000±0.0115",
    ):
        assert part in text, part
    for part in ("2.00x", "12,346", "150.00k", "better", "within noise", "2.0100", "0.312", "best of 30"):
        assert part in text, part
    assert "rule on speed" in text
    short = drawn(leaderboard(rows_of(30), reference=REFERENCE, width=150, legend=False), 150)
    assert "rule on speed" not in short
    assert "best of 30" in short


def test_leaderboard_is_honest() -> None:
    close = [LeaderRow(score=score_of("a", loss=4.49), name="a"), *rows_of(0)]
    text = drawn(leaderboard(close, reference=REFERENCE, width=150), 150)
    assert "No design shown here has a loss below delta_net's by more than the noise." in text
    leak = LeaderRow(score=score_of("b", fitness=0.99, discarded="leak: …"), name="leaky")
    text = drawn(leaderboard([leak, *close], reference=REFERENCE, width=150), 150)
    assert "leaky" not in text
    assert "without a rank: 1." in text
    assert "cannot be compared" in drawn(leaderboard(close, reference=None))
    assert "no scored design yet" in drawn(leaderboard([], reference=REFERENCE))


@pytest.mark.parametrize("width", [1, 20, 60, 80, 119, 240])
def test_leaderboard_fits_the_terminal(width: int) -> None:
    text = drawn(leaderboard(rows_of(12), reference=REFERENCE, width=width), width)
    assert max(len(line) for line in text.splitlines()) <= max(width, 1)


def test_durations() -> None:
    found = [duration(s) for s in (None, float("nan"), -1, 0.4, 59.6, 3599, 3600, 90_000)]
    assert found == ["?", "?", "0s", "0s", "1m00s", "59m59s", "1h00m", "1d01h"]


def test_streams_that_are_no_terminal_get_plain_lines() -> None:
    stream = io.StringIO()
    view = open_view(stream)
    assert isinstance(view, PlainView)
    view.show(FULL)
    view.show(FULL)
    view.close()
    assert stream.getvalue().count("laptop: searching") == 1


def test_a_closed_pipe_or_an_ascii_stream_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w", closefd=False)  # noqa: SIM115
    view = open_view(stream)
    view.show(FULL)
    view.show(replace(FULL, scored=20))
    view.close()
    os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.close()
    ascii_stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    open_view(ascii_stream).show(FULL)
    print_to(ascii_stream, leaderboard(rows_of(3), reference=REFERENCE, width=120))
    assert b"4.5000 ? 0.0100" in ascii_stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_gets_the_panel_and_keeps_its_cursor() -> None:
    leader, follower = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # how a pseudo-terminal reports its end
            while chunk := os.read(leader, 4096):
                seen.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with open(follower, "w") as stream:
        view = open_view(stream)
        if not isinstance(view, LiveView):
            stream.close()
            reader.join(10)
            pytest.skip("TERM says that this terminal cannot move its cursor")
        view.show(FULL)
        view.show(replace(FULL, scored=12, running=()))
        view.close()
    reader.join(10)
    os.close(leader)
    out = b"".join(seen).decode()
    assert "scored 12 of 24" in out
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1


def test_importing_the_view_loads_neither_rich_nor_torch() -> None:
    code = "import asiarch_hpc.controller.leaderboard, sys; print([m for m in ('rich', 'torch') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
