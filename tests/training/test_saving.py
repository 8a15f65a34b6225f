import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from asiarch_hpc.errors import StoreError
from asiarch_hpc.training import checkpoint
from asiarch_hpc.training.saving import Saver


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def state_of(weight: torch.Tensor) -> checkpoint.State:
    return {"identity": "a", "engine": {"model": {"w": weight}, "groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]}}


def test_what_is_written_is_the_state_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, save, written = torch.ones(1000), checkpoint.save, []

    def late(state: checkpoint.State, path: Path) -> None:
        weight.fill_(2.0)  # the training goes on
        written.append(state["engine"]["model"]["w"].clone())
        save(state, path)

    monkeypatch.setattr(checkpoint, "save", late)
    with Saver(tmp_path / "ck", seconds=60.0, clock=Clock()) as saver:
        saver.begin(state_of(weight), done_at=0.0)
        saver.finish()
        loaded = checkpoint.load(tmp_path / "ck", identity="a")
        assert loaded is not None
        assert torch.equal(loaded["engine"]["model"]["w"], torch.ones(1000))
        assert loaded["engine"]["groups"] == [{"lr": 0.1, "betas": (0.9, 0.95)}]
        saver.begin(state_of(weight), done_at=0.0)
    assert [float(w[0]) for w in written] == [1.0, 2.0]  # leaving waits for the second


def test_a_checkpoint_that_cannot_be_written_is_reported_by_the_next(tmp_path: Path) -> None:
    with Saver(tmp_path / "missing" / "ck", seconds=60.0, clock=Clock()) as saver:
        saver.begin(state_of(torch.ones(1)), done_at=0.0)
        with pytest.raises(StoreError, match="missing"):
            saver.begin(state_of(torch.ones(1)), done_at=0.0)
        saver.begin(state_of(torch.ones(1)), done_at=0.0)
        with pytest.raises(StoreError, match="missing"):
            saver.finish()


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("step", "writing"), [(0.5, [0.1]), (3.0, [0.1]), (12.0, [1.0]), (0.5, [29.0]), (2.0, [1.0, 2.0, 3.9, 7.5, 14.0])]
)
def test_a_process_that_dies_at_any_time_loses_a_minute_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float, writing: list[float], waits: bool
) -> None:
    """Steps while a checkpoint is written, as on a GPU, or `waits`; writing takes at most twice as long as before."""
    clock, lost, written = Clock(), [], 0
    worked = kept = 0.0  # when the last step, and the last one that is on disk, were done
    turn = threading.Event()

    def save(state: checkpoint.State, path: Path) -> None:
        turn.wait(10)  # until the training's clock says that it is written
        turn.clear()

    monkeypatch.setattr(checkpoint, "save", save)
    with Saver(tmp_path / "ck", seconds=60.0, clock=clock) as saver:
        ends, saved = float("inf"), 0.0  # of the checkpoint that is being written

        def finish_by(now: float) -> None:
            nonlocal ends, kept, written
            if ends <= now:
                clock.now = ends
                turn.set()
                saver.finish()
                lost.append(ends - kept)
                kept, ends, written = saved, float("inf"), written + 1
            clock.now = now

        while clock.now < 1000.0:
            finish_by(clock.now)
            if saver.due(step):
                assert ends == float("inf")
                saved, ends = worked, clock.now + writing[min(written, len(writing) - 1)]
                saver.begin(state_of(torch.ones(1)), done_at=worked)
                if waits:
                    finish_by(ends)
            finish_by(clock.now + step)
            worked = clock.now
            lost.append(worked - kept)
        turn.set()
    assert max(lost) <= 60.0
    assert written <= 1000.0 / 28  # half of the time, less a step, at the earliest
    if writing == [0.1] and step == 0.5:
        assert written <= 1000.0 / 58 + 1


def test_writing_that_takes_too_long_holds_up_nothing_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, turn = Clock(), threading.Event()
    monkeypatch.setattr(checkpoint, "save", lambda state, path: turn.wait(10))
    with Saver(tmp_path / "ck", seconds=60.0, clock=clock) as saver:
        assert not saver.due(1.0)
        clock.now = 29.0
        assert saver.due(1.0)
        saver.begin(state_of(torch.ones(1)), done_at=29.0)
        clock.now = 100.0
        assert not saver.due(1.0)
        turn.set()
        saver.finish()
        assert "took 71.0 s: a process that dies loses up to 142.0 s of work" in caplog.text
        assert saver.due(1.0)


def test_no_seconds_are_a_checkpoint_after_each_step(tmp_path: Path) -> None:
    with Saver(tmp_path / "ck", seconds=0.0, clock=Clock()) as saver:
        assert saver.due(0.0)
