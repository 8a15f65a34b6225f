import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.records import Json
from asiarch_hpc.training import checkpoint
from asiarch_hpc.training.corpus import Corpus
from asiarch_hpc.training.data import IGNORED, Batches
from asiarch_hpc.training.engine import StepResult, TorchEngine
from asiarch_hpc.training.loop import train
from asiarch_hpc.training.monitor import TrainingStoppedError
from asiarch_hpc.training.objective import Objective
from asiarch_hpc.training.progress import TrainOutcome
from asiarch_hpc.training.schedule import learning_rate

Run = Callable[..., TrainOutcome]


@pytest.fixture
def run(source: str, scale: ScaleConfig, corpus: Corpus, tmp_path: Path) -> Run:
    """Trains the tiny design; keyword arguments replace those of `train`."""

    def go(rows: list[Json] | None = None, text: str = source, **changes: object) -> TrainOutcome:
        arguments: dict[str, object] = {
            "scale": scale,
            "dim": 16,
            "depth": 2,
            "corpus": corpus,
            "seed": 0,
            "checkpoint_path": tmp_path / "ck",
            "on_metrics": (lambda row: None) if rows is None else rows.append,
            "should_stop": lambda: False,
            "clock": time.monotonic,
        }
        return train(text, **{**arguments, **changes})  # type: ignore[arg-type]

    return go


def stop_after(steps: int) -> Callable[[], bool]:
    asked = itertools.count()
    return lambda: next(asked) >= steps


def test_learns_and_reports(run: Run, corpus: Corpus, scale: ScaleConfig, tmp_path: Path) -> None:
    rows: list[Json] = []
    outcome = run(rows)
    assert outcome.status == "finished"
    assert outcome.final_loss < 0.7 * outcome.first_loss
    assert [r["step"] for r in rows] == list(range(1, 31))
    assert set(rows[0]) == {"step", "loss", "learning_rate", "gradient_norm", "step_seconds", "tokens"}
    batches = Batches(
        corpus.train, length=32, batch_size=4, seed=0, separator=corpus.tokenizer.eos, window=scale.packing_window
    )
    trained = sum(int((batches.batch(step).targets != IGNORED).sum()) for step in range(30))
    assert outcome.tokens == rows[-1]["tokens"] == trained < 30 * 4 * 32  # without the padding
    assert outcome.first_loss == rows[0]["loss"]
    assert outcome.final_loss == pytest.approx(sum(r["loss"] for r in rows[-10:]) / 10)
    assert outcome.tokens_per_second > 0
    assert (outcome.device, outcome.precision, outcome.resumed) == ("cpu", "fp32", 0)
    assert outcome.weights_path == tmp_path / "ck.weights"
    weights, digest = checkpoint.load_weights(outcome.weights_path)
    assert digest == outcome.weights_sha256
    assert weights["head.weight"].shape == (384, 16)  # 257 ids, filled up to a multiple of 128


@pytest.mark.parametrize("at", [0, 1, 13, 29])
def test_a_stopped_and_resumed_training_is_bit_identical(run: Run, tmp_path: Path, at: int) -> None:
    whole: list[Json] = []
    unbroken = run(whole, checkpoint_path=tmp_path / "whole")
    parts: list[Json] = []
    stopped = run(parts, should_stop=stop_after(at))
    assert (stopped.status, stopped.steps, stopped.weights_path) == ("interrupted", at, None)
    torch.rand(99)  # the random state of the process must not matter
    resumed = run(parts)
    assert (resumed.status, resumed.resumed) == ("finished", 1)
    assert resumed.weights_sha256 == unbroken.weights_sha256
    assert [r["loss"] for r in parts] == [r["loss"] for r in whole]
    assert (resumed.tokens, resumed.first_loss, resumed.final_loss) == (
        unbroken.tokens,
        unbroken.first_loss,
        unbroken.final_loss,
    )


def test_a_finished_training_asked_again_gives_the_same_weights(run: Run) -> None:
    rows: list[Json] = []
    assert run().weights_sha256 == run(rows).weights_sha256
    assert rows == []


def test_a_damaged_checkpoint_costs_one_interval(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unbroken = run(checkpoint_path=tmp_path / "whole")
    run(should_stop=stop_after(10))
    run(should_stop=stop_after(5))  # continues to step 15
    (tmp_path / "ck").write_bytes((tmp_path / "ck").read_bytes()[:-7])
    rows: list[Json] = []
    outcome = run(rows)
    assert rows[0]["step"] == 11
    assert "damaged checkpoint" in caplog.text
    assert outcome.weights_sha256 == unbroken.weights_sha256


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"dim": 24},
        {"depth": 1},
        {"learning_rate": 2e-2},
        {"documents_apart": False},
        {"packing_window": 7},
        {"text": "#"},
    ],
)
def test_a_checkpoint_of_other_settings_is_not_continued(
    run: Run, scale: ScaleConfig, source: str, change: dict[str, object]
) -> None:
    run(should_stop=stop_after(10))
    if set(change) & {"learning_rate", "documents_apart", "packing_window"}:
        change = {"scale": replace(scale, **change)}
    if "text" in change:
        change = {"text": source.replace("torch.sigmoid", "torch.tanh")}
    rows: list[Json] = []
    assert run(rows, **change).resumed == 0
    assert rows[0]["step"] == 1


def test_documents_are_told_to_designs_that_ask_where_the_scale_says_so(
    run: Run, scale: ScaleConfig, asking: str, tmp_path: Path
) -> None:
    def trained(name: str, *text: str, apart: bool = True) -> TrainOutcome:
        given = {"text": text[0]} if text else {}
        return run(scale=replace(scale, documents_apart=apart), checkpoint_path=tmp_path / name, **given)

    plain, told, untold = trained("plain"), trained("told", asking), trained("untold", asking, apart=False)
    assert [outcome.documents_given for outcome in (plain, told, untold)] == [False, True, False]
    assert untold.weights_sha256 == plain.weights_sha256 != told.weights_sha256


@pytest.mark.parametrize(("step", "writing"), [(2.0, 0.1), (2.0, 20.0), (11.0, 5.0)])
def test_a_training_that_dies_at_any_time_loses_a_minute_of_work_at_most(
    run: Run, scale: ScaleConfig, monkeypatch: pytest.MonkeyPatch, step: float, writing: float
) -> None:
    """With the setting that is the default."""
    now = 0.0
    done, kept, lost = {0: 0.0}, [0], []  # when steps were done; steps of the checkpoints
    save, make_step = checkpoint.save, TorchEngine.step

    def slow_step(*arguments: Any) -> StepResult:
        nonlocal now
        now += step
        return make_step(*arguments)

    def slow_save(state: checkpoint.State, path: Path) -> None:
        nonlocal now
        now += writing
        save(state, path)
        lost.append(now - done[kept[-1]])
        kept.append(state["progress"]["step"])

    def note(row: Json) -> None:
        done[row["step"]] = now

    monkeypatch.setattr(TorchEngine, "step", slow_step)
    monkeypatch.setattr(checkpoint, "save", slow_save)
    seconds = ScaleConfig().checkpoint_seconds
    run(scale=replace(scale, checkpoint_seconds=seconds, steps=90), on_metrics=note, clock=lambda: now)
    assert seconds == 60.0
    assert max(lost) <= 60.0
    assert len(lost) <= now / 26 + 1  # half a minute less two steps


def test_kill_dash_nine_loses_nothing(
    run: Run, source: str, scale: ScaleConfig, corpus: Corpus, tmp_path: Path
) -> None:
    unbroken = run(checkpoint_path=tmp_path / "whole")
    (tmp_path / "design.py").write_text(source)
    code = f"""
import time
from pathlib import Path
from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.training.corpus import open_corpus
from asiarch_hpc.training.engine import StepResult, TorchEngine
from asiarch_hpc.training.loop import train
train(Path({str(tmp_path / "design.py")!r}).read_text(), scale=ScaleConfig(**{asdict(scale)!r}), dim=16, depth=2,
      corpus=open_corpus(Path({str(corpus.path)!r})), seed=0, checkpoint_path=Path({str(tmp_path / "ck")!r}),
      on_metrics=lambda row: print(row["step"], flush=True), should_stop=lambda: False, clock=time.monotonic)
""".replace("'checkpoint_seconds': 1000000000.0", "'checkpoint_seconds': 0.0")
    assert "'checkpoint_seconds': 0.0" in code
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == 9:
            break
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    rows: list[Json] = []
    outcome = run(rows)
    assert outcome.resumed == 1
    assert rows[0]["step"] >= 9  # step 9 may have been cut off before its checkpoint
    assert outcome.weights_sha256 == unbroken.weights_sha256


@pytest.mark.parametrize(
    ("old", "new", "cause", "message"),
    [
        ("mean = ", "mean = X @ X + ", "design_error", "step 1: RuntimeError"),
        ("mean = ", "raise SystemExit(3) ; mean = ", "design_error", "SystemExit: 3"),
        ("self.norm = ", "raise KeyError('no') ; self.norm = ", "design_error", "building at dim=16, depth=2: .*'no'"),
        ("class Block", "class Blok", "design_error", "Blok"),
        ("mean = ", "torch.empty(2**60) ; mean = ", "out_of_memory", "step 1: RuntimeError: .*allocate memory"),
        ("mean = ", "raise torch.OutOfMemoryError('CUDA') ; mean = ", "out_of_memory", "step 1: OutOfMemoryError"),
        ("return X +", "return X * float('inf') +", "non_finite_loss", "step 1: the loss is nan"),
        ("return X +", "return X.sign() * (X * 0).abs().sqrt() +", "non_finite_loss", "gradient norm is nan"),
    ],
)
def test_a_failing_design_stops_with_its_cause(
    run: Run, source: str, old: str, new: str, cause: str, message: str
) -> None:
    with pytest.raises(TrainingStoppedError, match=message) as stopped:
        run(text=source.replace(old, new))
    assert stopped.value.cause == cause


def test_a_training_that_ran_out_of_memory_says_how_many_rows_fitted(run: Run, source: str, scale: ScaleConfig) -> None:
    short = source.replace("mean = ", "torch.empty(2**60 if len(X) > 1 else 1) ; mean = ")
    outcome = run(text=short)
    assert (outcome.status, outcome.micro_batch) == ("finished", 1)
    smaller = run(scale=replace(scale, micro_batch=1), checkpoint_path=outcome.weights_path.with_name("other"))
    assert outcome.weights_sha256 == smaller.weights_sha256


def test_why_a_design_was_not_compiled_is_told(
    run: Run, scale: ScaleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no such operation\nwith details\nof many lines")

    monkeypatch.setattr(Objective, "compile", lambda self: setattr(self, "compiled", True))
    make = Objective.loss
    monkeypatch.setattr(Objective, "loss", lambda self, *a, **k: refuse() if self.compiled else make(self, *a, **k))
    outcome = run()
    assert (outcome.status, outcome.compiled) == ("finished", False)
    assert outcome.not_compiled_because == "ValueError: no such operation"
    monkeypatch.undo()
    assert run(checkpoint_path=tmp_path / "plain").not_compiled_because == ""


def test_limits_stop_with_their_cause(run: Run, scale: ScaleConfig) -> None:
    with pytest.raises(TrainingStoppedError, match="step 1: the loss is 5") as stopped:
        run(scale=replace(scale, loss_limit=2.0))
    assert stopped.value.cause == "diverged"
    with pytest.raises(TrainingStoppedError, match="step 5: the median gradient norm") as stopped:
        run(scale=replace(scale, gradient_limit=1e-6))
    assert stopped.value.cause == "diverged"
    ticks = itertools.count(step=50)
    rows: list[Json] = []
    with pytest.raises(TrainingStoppedError) as stopped:
        run(rows, clock=lambda: float(next(ticks)))
    assert stopped.value.cause == "too_slow"
    assert len(rows) == 6


def test_a_continued_training_remembers_how_low_its_loss_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one that exploded before it was interrupted would go on."""
    rows: list[Json] = []
    run(rows, should_stop=stop_after(25))
    losses, load, found = [row["loss"] for row in rows], checkpoint.load, []

    def lower(path: Path, *, identity: str) -> checkpoint.State | None:
        state = load(path, identity=identity)
        assert state is not None
        found.append(state["progress"]["lowest_loss"])
        state["progress"]["lowest_loss"] = -10.0
        state["progress"]["step"] = 0  # the twenty steps of a window are left
        return state

    monkeypatch.setattr(checkpoint, "load", lower)
    with pytest.raises(TrainingStoppedError, match=r"step 20: the median loss .* it was -10\.00 before") as stopped:
        run()
    assert stopped.value.cause == "diverged"
    assert found == [min(median(losses[end - 20 : end]) for end in range(20, 26))]


def test_the_auxiliary_loss_is_trained_on_but_not_reported(run: Run, source: str) -> None:
    pushed = source.replace(
        "        return X",
        "        Z['auxiliary_loss'] = 3e2 * (self.norm.weight - 2).square().sum()\n        return X",
    )
    outcome = run(text=pushed)
    assert outcome.first_loss < 6
    assert outcome.weights_path is not None
    weights, _ = checkpoint.load_weights(outcome.weights_path)
    assert weights["blocks.0.block.norm.weight"].mean() > 1.1


def test_the_process_is_left_as_it_was(run: Run) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@given(
    steps=st.integers(1, 500),
    warmup=st.integers(0, 600),
    decay=st.floats(0, 1),
    peak=st.floats(1e-6, 1),
)
@settings(deadline=None)
def test_schedule(steps: int, warmup: int, decay: float, peak: float) -> None:
    rates = [learning_rate(s, steps=steps, peak=peak, warmup_steps=warmup, decay_fraction=decay) for s in range(steps)]
    assert all(0 < rate <= peak for rate in rates)
    top = rates.index(max(rates))
    assert all(a <= b for a, b in itertools.pairwise(rates[: top + 1]))  # up, then stays, then down
    assert all(a >= b for a, b in itertools.pairwise(rates[top:]))
    decaying = round(decay * steps)
    if warmup + decaying <= steps:
        assert rates[warmup : steps - decaying + 1] == [peak] * len(rates[warmup : steps - decaying + 1])
    if decaying and warmup <= 1:
        assert rates[-1] == pytest.approx(peak / decaying)


@given(steps=st.integers(2, 500), warmup=st.integers(0, 100), floor=st.floats(0, 1))
@settings(deadline=None)
def test_cosine_schedule(steps: int, warmup: int, floor: float) -> None:
    warmup = min(warmup, steps - 1)

    def rate(step: int) -> float:
        return learning_rate(
            step, steps=steps, peak=0.5, warmup_steps=warmup, decay_fraction=0.4, schedule="cosine", min_ratio=floor
        )

    rates = [rate(step) for step in range(warmup, steps + 1)]
    assert rates[0] == 0.5
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx(0.5 * floor)
    assert (rates[0] + rates[-1]) / 2 == pytest.approx(rate(warmup + (steps - warmup) // 2), abs=0.5 / (steps - warmup))
    assert [rate(step) for step in range(warmup)] == pytest.approx([0.5 * (s + 1) / warmup for s in range(warmup)])
