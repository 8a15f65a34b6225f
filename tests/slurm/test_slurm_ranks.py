"""One training over two nodes of a real Slurm: one task a process, one message a job, a stop and its sequel."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from slurm_clusters import Cluster, wait_for

from asiarch_hpc.config import ExecutorConfig, ResourceConfig
from asiarch_hpc.controller.scheduler import JobRequest
from asiarch_hpc.controller.slurm import SlurmScheduler
from asiarch_hpc.records import Json
from asiarch_hpc.store.curves import read_curves
from asiarch_hpc.store.layout import RunLayout
from jobs.entry import Entry
from tests.trials import message_of, one_design, training

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

TWO_NODES = ResourceConfig(timeout_min=10, memory_gb=1, nodes=2, slurm={"exclude": "n1"})  # n1 is the node that dies


def submit(layout: RunLayout, identifier: str, tag: str) -> SlurmScheduler:
    def entry(request: JobRequest) -> Entry:
        return Entry(str(layout.root), request.name, "train", 1, request.entry, request.arguments)

    scheduler = SlurmScheduler("test-ranks-", layout.jobs, ExecutorConfig(command_seconds=60), entry)
    job = training(layout, identifier)
    scheduler.submit(
        tag,
        [JobRequest(name=f"{tag}_0", kind="train", entry=job.function, arguments=job.arguments, resources=TWO_NODES)],
    )
    return scheduler


def message(layout: RunLayout) -> Json:
    """The job's only message."""
    [path] = wait_for(lambda: list(layout.inbox.glob("*.json")), 300, "a message")
    found: Json = json.loads(path.read_text())
    return found


def logs(layout: RunLayout) -> str:
    return "\n".join(path.read_text() for path in layout.jobs.rglob("*.out"))


def test_two_nodes_train_as_one_and_go_on_after_a_warning(plain: Cluster, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    small = "scale.steps=400"
    single, identifier = one_design(tmp_path / "one", small)
    assert message_of(training(single, identifier))["status"] == "ok"
    layout, identifier = one_design(tmp_path / "two", small, "executor.kind=slurm", "executor.train.nodes=2")
    metrics = layout.experiment(identifier).trial("smoke-s0").metrics

    scheduler = submit(layout, identifier, "test-ranks-0")
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, 120, "steps")
    [number] = {status.scheduler_id for status in scheduler.query().values()}
    subprocess.run(["scancel", "--signal=USR2", number], check=True)
    found = message(layout)

    assert found["status"] == "ok", (found, logs(layout))
    trial = found["payload"]["trial"]
    assert (found["restart"], trial["resumed"], trial["ranks"], trial["steps"]) == (1, 1, 2, 400)
    assert (trial["engine"], trial["network"]) == ("deepspeed", True)
    alone, shared = (
        list(read_curves(run.experiment(identifier).trial("smoke-s0").curves)["loss"]) for run in (single, layout)
    )
    assert shared == pytest.approx(alone, abs=2e-4)
    wait_for(lambda: all(s.state == "ended" for s in scheduler.query().values()), 60, "the job's end")
    assert len(list(layout.inbox.iterdir())) == 1


def test_a_failure_on_the_second_node_ends_the_trial_with_its_cause(plain: Cluster, tmp_path: Path) -> None:
    from tests.trials import SOURCE

    act = "if os.environ['RANK'] == '1': raise ValueError('only here')"
    text = SOURCE.replace("import torch\n", "import os, torch\n", 1)
    text = text.replace("        h = self.norm(X)", f"        {act}\n        h = self.norm(X)")
    layout, identifier = one_design(tmp_path, "executor.kind=slurm", "executor.train.nodes=2", source=text)
    scheduler = submit(layout, identifier, "test-ranks-1")
    found = message(layout)
    assert (found["status"], found["cause"]) == ("failed", "design_error"), (found, logs(layout))
    assert "only here" in found["message"]
    wait_for(lambda: all(s.state == "ended" for s in scheduler.query().values()), 60, "the job's end")
