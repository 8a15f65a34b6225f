from pathlib import Path

import pytest
import torch

from asiarch_hpc.errors import StoreError
from asiarch_hpc.training import checkpoint
from asiarch_hpc.training.saving import Saver


def state_of(weight: torch.Tensor) -> checkpoint.State:
    return {"identity": "a", "engine": {"model": {"w": weight}, "groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]}}


def test_what_is_written_is_the_state_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, save, written = torch.ones(1000), checkpoint.save, []

    def late(state: checkpoint.State, path: Path) -> None:
        weight.fill_(2.0)  # the training goes on
        written.append(state["engine"]["model"]["w"].clone())
        save(state, path)

    monkeypatch.setattr(checkpoint, "save", late)
    with Saver(tmp_path / "ck") as saver:
        saver.begin(state_of(weight))
        saver.finish()
        loaded = checkpoint.load(tmp_path / "ck", identity="a")
        assert loaded is not None
        assert torch.equal(loaded["engine"]["model"]["w"], torch.ones(1000))
        assert loaded["engine"]["groups"] == [{"lr": 0.1, "betas": (0.9, 0.95)}]
        saver.begin(state_of(weight))
    assert [float(w[0]) for w in written] == [1.0, 2.0]  # leaving waits for the second


def test_a_checkpoint_that_cannot_be_written_is_reported_by_the_next(tmp_path: Path) -> None:
    with Saver(tmp_path / "missing" / "ck") as saver:
        saver.begin(state_of(torch.ones(1)))
        with pytest.raises(StoreError, match="missing"):
            saver.begin(state_of(torch.ones(1)))
        saver.begin(state_of(torch.ones(1)))
        with pytest.raises(StoreError, match="missing"):
            saver.finish()
