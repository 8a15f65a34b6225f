"""A whole experiment proposed by a real vLLM that the controller itself runs as a Slurm job.

The server is killed once it is ready, and its successor takes over before its time limit. The model's weights are
random: under the schema of edits whatever it answers is an edit of the parent's tree.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from asiarch_hpc.records import Json
from asiarch_hpc.store.experiments import scan
from asiarch_hpc.store.files import read_json
from asiarch_hpc.store.journal import read_events
from asiarch_hpc.store.layout import RunLayout
from tests.conftest import command, wait_for
from tests.vllm.vllm_jobs import KEY, overrides, services

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


def _clusters() -> ModuleType:
    """The module of tests/slurm, which is no package."""
    spec = importlib.util.spec_from_file_location("slurm_clusters", ROOT / "tests/slurm/slurm_clusters.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def slurm(vllm: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if os.environ.get("CI") != "true" and os.geteuid() != 0:
        pytest.skip("starts a Slurm cluster: root is needed")
    cluster = _clusters().Cluster("--cpus", "8")
    try:
        cluster.start()
        monkeypatch.setenv("SLURM_CONF", cluster.conf)
        yield
    finally:
        cluster.begin_stop()
        cluster.remove()


def told(layout: RunLayout, text: str) -> bool:
    return layout.journal.exists() and any(text in json.dumps(event) for event in read_events(layout.journal))


def served_from(folder: str) -> list[int]:
    """Processes of the servers of a model."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if folder.encode() in words and b"--served-model-name" in words:
                found.append(int(path.parent.name))
    return found


def test_a_design_of_a_served_model_through_slurm(
    slurm: None, server: Callable[..., Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASIARCH_API_KEY", KEY)
    layout = RunLayout.of(tmp_path, "served")
    entry = server(timeout_min=6, handover_s=270.0, drain_s=5.0, context=8192)
    words = command(tmp_path, "served", "proposer=llm", "agents.design=edit", "agents.novelty.verdict=false")
    words += [
        *overrides(entry),
        "agents.context=8192",
        "agents.roles.researcher.max_tokens=1400",
        "agents.roles.analyst.max_tokens=40",
    ]
    words += [
        "executor.kind=slurm",
        "executor.query_seconds=1",
        "executor.lost_grace_seconds=2",
        "limits.submissions=3",
    ]
    words += ["executor.serve={gpus: 0, cpus: 2, memory_gb: 3.5}", "search.designs=2", "search.batch=2"]
    words += ["search.cold_start=2", "executor.train.cpus=1", "executor.propose.memory_gb=2"]
    run = subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:

        def ready() -> dict[str, float]:
            """Start times of the servers that are ready."""
            assert run.poll() is None, run.communicate()[0]
            return {s.name: s.started for s in services(layout) if s.state == "ready"}

        first = wait_for(lambda: ready().get("main-0-000"), 400)
        for pid in served_from(str(entry["model"])):
            os.kill(pid, signal.SIGKILL)
        again = wait_for(lambda: ready().get("main-0-000", first) > first and ready(), 400)
        assert again
        assert wait_for(lambda: "main-0-001" in ready(), 400), "no successor before the time limit"
        output = run.communicate(timeout=600)[0]
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGINT)
            run.wait(60)
    assert run.returncode == 0, output
    found = [e for e in scan(layout).experiments if e.record.proposer == "llm"]
    scored = [e for e in found if e.score is not None]
    assert len(scored) == 2, output
    for stored in scored:
        folder = layout.experiment(stored.record.id)
        assert read_json(folder.proposal)["models"] == ["tiny"]
        rows = [json.loads(line) for line in folder.exchanges.read_text().splitlines()]
        assert any(
            row.get("role") == "researcher" and "edit" in json.loads(row["reply"]) for row in rows if "reply" in row
        )
        assert folder.units.exists()
    events = list(read_events(layout.journal))
    assert any(e["event"] == "served" and e["key"] == "serve-main-0-000" for e in events), (
        "the old server was not drained"
    )
    assert any(e["event"] == "lost" and e["key"] == "serve-main-0-000" for e in events), "the kill was not seen"
    wait_for(lambda: not services(layout), 90)
    wait_for(lambda: subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout == "", 60)
    assert not any(KEY in path.read_text(errors="ignore") for path in layout.root.rglob("*") if path.is_file())
