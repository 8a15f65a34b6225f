"""The same loop through a real Slurm: `sbatch slurm/controller.sh`, jobs in arrays, trouble from outside."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from asiarch_hpc.store.experiments import scan
from asiarch_hpc.store.journal import read_events
from asiarch_hpc.store.layout import RunLayout
from tests.conftest import pools, wait_for

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


def ask(*words: str, **environment: str) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment}
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def jobs(name: str, state: str) -> list[str]:
    lines = ask("squeue", "-h", "-r", "-t", state, "-o", "%i %j").splitlines()
    return [line.split()[0] for line in lines if name in line]


def trained(layout: RunLayout) -> list[Any]:
    return [event for event in read_events(layout.journal) if event["event"] == "trained"]


def test_the_controller_job_finds_the_designs_of_a_local_run(plain: Any, tmp_path: Path, calm: RunLayout) -> None:
    """Also: it is put back into the queue before its time limit, and a job is killed from outside."""
    if not (ROOT / ".venv/bin/asiarch").exists():
        pytest.skip("slurm/controller.sh runs from .venv: use `make test`")
    layout = RunLayout.of(tmp_path, "cluster")
    log = tmp_path / "controller.log"
    settings = (
        "limits.tick_seconds=0.2 executor.query_seconds=2 executor.lost_grace_seconds=3 executor.max_jobs=2 "
        "executor.train.memory_gb=1 executor.propose.memory_gb=1"
    )
    number = ask(
        "sbatch", "--parsable", f"--output={log}", "--mem=0", "slurm/controller.sh",
        RUN="cluster", CONFIG="smoke", RESULTS=str(tmp_path), ARGS=settings,
    ).strip()  # fmt: skip
    wait_for(lambda: trained(layout))
    victim = wait_for(lambda: jobs("-train-", "RUNNING"))[0]
    ask("scancel", "--signal=KILL", victim)
    wait_for(lambda: len(trained(layout)) >= 3)
    ask("scancel", "--signal=USR1", "--batch", number)
    wait_for(lambda: "goes back into the queue" in log.read_text())
    ask("scontrol", "release", number) if jobs("asiarch-controller", "REQUEUE_HOLD") else None
    wait_for(lambda: "leaderboard" in log.read_text(), 600)
    assert pools(layout) == pools(calm)
    assert not scan(layout).damaged
    events = list(read_events(layout.journal))
    starts = [event for event in events if event["event"] == "start"]
    assert len(starts) == 2
    assert {event["scheduler"] for event in starts} == {"slurm"}
    assert any(event["event"] == "lost" for event in events)
    assert "Traceback" not in log.read_text()
