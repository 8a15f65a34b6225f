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


def queue(state: str) -> list[str]:
    """Lines `id name`."""
    return ask("squeue", "-h", "-r", "-t", state, "-o", "%i %j").splitlines()


def jobs(name: str, state: str) -> list[str]:
    return [line.split()[0] for line in queue(state) if name in line]


def trained(layout: RunLayout) -> list[Any]:
    return [event for event in read_events(layout.journal) if event["event"] == "trained"]


def signal_a_training(layout: RunLayout, name: str, *, but: str = "") -> str:
    """Sends a signal to a training that has just begun; returns which one."""

    def begun() -> dict[str, str]:
        """Scheduler ids of trainings that have claimed their attempt and have no result."""
        names = {}
        for event in read_events(layout.journal):
            if event["event"] == "intent":
                names |= {f"{event['tag']}_{index}": work["key"] for index, work in enumerate(event["works"])}
        tasks = [line.split() for line in queue("RUNNING") if "_" in line.split()[0]]  # not the controller
        running = {f"{tag}_{number.partition('_')[2]}": number for number, tag in tasks}
        found = {names[name]: number for name, number in running.items() if name in names}
        return {key: number for key, number in found.items() if layout.attempts(key).is_dir()}

    def fresh() -> list[tuple[str, str]]:
        done = {event["key"] for event in trained(layout)} | {but}
        return [item for item in begun().items() if item[0].startswith("train") and item[0] not in done]

    key, number = wait_for(fresh)[0]
    ask("scancel", f"--signal={name}", number)
    return str(key)


def test_the_controller_job_finds_the_designs_of_a_local_run(plain: Any, tmp_path: Path, calm: RunLayout) -> None:
    """Also: it is put back into the queue before its time limit, one job is killed from outside, and another is
    warned of its time limit: it goes back into the queue from its checkpoint."""
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
    killed = signal_a_training(layout, "KILL")
    warned = signal_a_training(layout, "USR2", but=killed)
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
    assert [event["key"] for event in events if event["event"] == "lost"] == [killed]
    assert "Traceback" not in log.read_text()
    attempts = {event["key"]: event["evaluation"]["attempt"] for event in trained(layout)}
    assert attempts[warned] == "001.001"
    assert attempts[killed] == "002.000"
