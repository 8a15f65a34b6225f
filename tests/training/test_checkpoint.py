import hashlib
import io
import logging
import os
import pickle
import resource
import signal
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from asiarch_hpc.errors import RecordError, StoreError
from asiarch_hpc.training import checkpoint


def state(step: int, identity: str = "mine") -> checkpoint.State:
    return {"identity": identity, "step": step, "weights": torch.full((50,), float(step))}


def test_newest_comes_back_and_no_other_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "ck"
    assert checkpoint.load(path, identity="mine") is None
    for step in (1, 2, 3):
        checkpoint.save(state(step), path)
    loaded = checkpoint.load(path, identity="mine")
    assert loaded is not None
    assert loaded["step"] == 3
    assert torch.equal(loaded["weights"], torch.full((50,), 3.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ck", "ck.previous"]
    checkpoint.discard(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["flipped bit", "truncated", "empty", "text"])
def test_a_damaged_checkpoint_gives_way_to_the_previous(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    path = tmp_path / "ck"
    checkpoint.save(state(1), path)
    checkpoint.save(state(2), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flipped bit": bytes(data), "truncated": data[:300], "empty": b"", "text": b"hello"}[harm])
    with caplog.at_level(logging.WARNING):
        loaded = checkpoint.load(path, identity="mine")
    assert loaded is not None
    assert loaded["step"] == 1
    assert f"{path}: damaged checkpoint" in caplog.text
    path.with_name("ck.previous").write_bytes(b"")
    assert checkpoint.load(path, identity="mine") is None


def test_a_state_is_in_memory_once(tmp_path: Path) -> None:
    big = {"identity": "mine", "weights": torch.ones(8_000_000)}
    model = nn.Linear(4_000, 2_000, bias=False)
    tracemalloc.start()
    try:
        checkpoint.save(big, tmp_path / "ck")
        checkpoint.save_weights(model, tmp_path / "weights")
        loaded = checkpoint.load(tmp_path / "ck", identity="mine")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert loaded is not None
    assert torch.equal(loaded["weights"], big["weights"])
    assert peak < 16e6  # of 32 MB, beside the tensors themselves


def test_the_previous_serves_when_death_came_between_the_two_renames(tmp_path: Path) -> None:
    path = tmp_path / "ck"
    checkpoint.save(state(1), path)
    os.replace(path, tmp_path / "ck.previous")
    loaded = checkpoint.load(path, identity="mine")
    assert loaded is not None
    assert loaded["step"] == 1


def test_the_checkpoint_of_another_training_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint.save(state(1, identity="other"), tmp_path / "ck")
    assert checkpoint.load(tmp_path / "ck", identity="mine") is None
    assert "checkpoint of another training (other), expected mine" in caplog.text


def test_a_checkpoint_runs_no_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'harmed'}",)

    buffer = io.BytesIO()
    torch.save({"identity": "mine", "evil": Evil()}, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    (tmp_path / "ck").write_bytes(digest + b"\n" + payload)
    assert checkpoint.load(tmp_path / "ck", identity="mine") is None
    assert not (tmp_path / "harmed").exists()


def test_weights_and_their_hash(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = nn.Linear(3, 2), tmp_path / "weights"
    digest = checkpoint.save_weights(model, path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    weights, loaded_digest = checkpoint.load_weights(path)
    assert loaded_digest == digest
    assert torch.equal(weights["weight"], model.weight)
    assert checkpoint.save_weights(model, tmp_path / "again") == digest
    with torch.no_grad():
        model.weight[0, 0] += 1e-6
    assert checkpoint.save_weights(model, tmp_path / "again") != digest


@pytest.mark.parametrize("content", [None, b"", b"nonsense", pickle.dumps([1, 2])])
def test_bad_weights_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordError, match=str(path)):
        checkpoint.load_weights(path)


@pytest.fixture
def _small_files() -> Iterator[None]:
    """As on a full disk: writing fails in the middle of a file."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("_small_files")
def test_a_file_that_does_not_fit_leaves_the_older_ones(tmp_path: Path) -> None:
    checkpoint.save(state(1), tmp_path / "ck")
    with pytest.raises(StoreError, match=r"ck: cannot be written: .* too large"):
        checkpoint.save({"identity": "mine", "weights": torch.ones(1_000_000)}, tmp_path / "ck")
    with pytest.raises(StoreError, match=r"weights: cannot be written: .* too large"):
        checkpoint.save_weights(nn.Linear(1000, 300), tmp_path / "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["ck"]
    assert checkpoint.load(tmp_path / "ck", identity="mine") is not None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no/ck: cannot be written"):
        checkpoint.save(state(1), tmp_path / "no" / "ck")
