"""Trainings of several processes as the local machine runs them: real jobs, sandboxes, DeepSpeed."""

from __future__ import annotations

import functools
import mmap
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from asiarch_hpc.config import ExecutorConfig, ResourceConfig
from asiarch_hpc.gate.sandbox import Outcome, run_isolated
from asiarch_hpc.records import Json
from asiarch_hpc.store.curves import read_curves
from asiarch_hpc.store.files import read_json, write_json
from asiarch_hpc.store.layout import RunLayout
from asiarch_hpc.training.world import World
from jobs.entry import Attempt
from jobs.ranks import train_together
from tests.trials import SOURCE, message_of, one_design, training

TWO = "executor.train.ranks=2"


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_two_processes_of_a_job_train_as_one(tmp_path: Path) -> None:
    losses, trials = [], []
    for name, overrides in {"one": [], "two": [TWO, "scale.zero_stage=1"]}.items():
        (tmp_path / name).mkdir()
        layout, identifier = one_design(tmp_path / name, *overrides)
        message = message_of(training(layout, identifier))
        assert message["status"] == "ok", message
        trials.append(message["payload"]["trial"])
        folder = layout.experiment(identifier).trial("smoke-s0")
        losses.append(list(read_curves(folder.curves)["loss"]))
        assert sorted(path.name for path in folder.root.iterdir()) == [
            "curves.zarr.zip", "evaluation.json", "trial.json",
        ]  # fmt: skip
        assert not list(layout.inbox.iterdir())
    assert losses[1] == pytest.approx(losses[0], abs=2e-5)
    one, two = ({key: trial[key] for key in ("ranks", "engine", "network")} for trial in trials)
    assert one == {"ranks": 1, "engine": "torch", "network": False}
    assert two == {"ranks": 2, "engine": "deepspeed", "network": True}
    assert trials[0]["tokens"] == trials[1]["tokens"]
    assert trials[0]["documents_given"] is trials[1]["documents_given"] is True


@pytest.mark.parametrize(
    ("act", "stage", "status", "cause", "words"),
    [
        ("raise ValueError('only here')", 1, "failed", "design_error", "step 3: ValueError: only here"),
        ("os.kill(os.getpid(), 9)", 0, "error", "ChildProcessError", "killed by signal 9"),
        ("time.sleep(3600)", 0, "error", "PeerLostError", "gone or silent|Timed out"),
    ],
)
def test_what_befalls_one_process_ends_all(
    tmp_path: Path, act: str, stage: int, status: str, cause: str, words: str
) -> None:
    act = f"if os.environ['RANK'] == '1' and (n := globals().get('n', -1) + 1) == 2: {act}"
    text = SOURCE.replace("import torch\n", "import os, time, torch\nn = -1\n", 1)
    text = text.replace("        h = self.norm(X)", f"        global n\n        {act}\n        h = self.norm(X)")
    waits = ("executor.peer_seconds=10", "executor.lost_grace_seconds=3")
    layout, identifier = one_design(tmp_path, TWO, f"scale.zero_stage={stage}", *waits, source=text)
    before = children()
    message = message_of(training(layout, identifier))
    assert children() == before
    assert (message["status"], message["cause"]) == (status, cause), message
    assert re.search(words, message["message"]), message
    folder = layout.experiment(identifier).trial("smoke-s0")
    assert not list(folder.root.glob("ranks-*"))
    assert folder.failure.exists() == (status == "failed")


def test_a_job_that_is_told_to_stop_is_continued_by_one_process(tmp_path: Path) -> None:
    layout, identifier = one_design(tmp_path, TWO, "scale.steps=400")
    metrics = layout.experiment(identifier).trial("smoke-s0").metrics

    def warn() -> None:
        while not metrics.exists() or not metrics.read_text().count("\n") > 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    threading.Thread(target=warn, daemon=True).start()
    message = message_of(training(layout, identifier))
    assert message["status"] == "interrupted", message
    record = read_json(layout.record)
    record["config"]["executor"]["train"]["ranks"] = 0
    write_json(layout.record, record)
    message = message_of(training(layout, identifier, submission=2))
    trial = message["payload"]["trial"]
    assert (trial["resumed"], trial["ranks"], trial["steps"]) == (1, 1, 400)


@pytest.mark.gpu
@pytest.mark.sandboxed
def test_gpus_of_two_sandboxes_are_connected_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL must not fall back to the network between processes of one node."""
    if len(list(Path("/dev").glob("nvidia[0-9]*"))) < 2:
        pytest.skip("fewer than two GPUs on this machine")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")

    def work(world: World) -> Json:
        with world.connected(torch.device("cuda")):
            total = world.add(torch.full((1 << 24,), world.rank + 1.0, device="cuda"))
            return {"sum": float(total[-1])}

    def run_rank(world: World) -> Outcome:
        (tmp_path / str(world.rank)).mkdir()
        return run_isolated(
            functools.partial(work, world),
            timeout_s=120,
            memory_gb=16,
            writable=[tmp_path / str(world.rank), tmp_path],
            gpu=True,
            network=True,
        )

    attempt = Attempt(RunLayout(tmp_path), "job", "work", 0, 0, mmap.mmap(-1, 1))
    answer = train_together(
        run_rank,
        attempt=attempt,
        config=ExecutorConfig(train=ResourceConfig(gpus=2), peer_seconds=90.0),
        board=tmp_path / "board",
        meeting=tmp_path / "meeting",
    )
    assert answer.result == {"sum": 3.0}, answer
    assert "via P2P" in answer.output, answer.output
    assert "via NET" not in answer.output, answer.output
