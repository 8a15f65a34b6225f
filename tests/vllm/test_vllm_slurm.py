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

from asiarch_hpc.records import Json, Service
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


def server_at(url: str) -> list[int]:
    """Processes of the server that listens there."""
    port, found = url.removesuffix("/v1").rpartition(":")[2].encode(), []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"--served-model-name" in words and port in words:
                found.append(int(path.parent.name))
    return found


def test_designs_of_a_served_model_through_slurm(
    slurm: None, server: Callable[..., Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASIARCH_API_KEY", KEY)
    layout = RunLayout.of(tmp_path, "served")
    entry = server(timeout_min=6, handover_s=260.0, drain_s=5.0, context=8192)
    words = command(tmp_path, "served", "proposer=llm", "agents.design=edit", "agents.novelty.verdict=false")
    words += [*overrides(entry), "agents.context=8192", "agents.roles.researcher.max_tokens=1400"]
    words += ["agents.roles.analyst.max_tokens=40", "limits.submissions=3", "search.designs=60", "search.batch=10"]
    words += ["executor.kind=slurm", "executor.query_seconds=1", "executor.lost_grace_seconds=2"]
    words += ["executor.serve={gpus: 0, cpus: 2, memory_gb: 3.5}", "executor.max_jobs=3"]
    run = subprocess.Popen(
        words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it for jobs behind them
    )  # fmt: skip

    def ready(wanted: Callable[[Service], bool] = lambda _: True) -> Service | None:
        assert run.poll() is None, run.communicate()[0]
        return next((s for s in services(layout) if s.state == "ready" and wanted(s)), None)

    def told(event: str, **fields: str) -> bool:
        return any(e["event"] == event and fields.items() <= e.items() for e in read_events(layout.journal))

    try:
        first = wait_for(ready, 400)
        for pid in server_at(first.url):
            os.kill(pid, signal.SIGKILL)
        # Started again, or its successor's turn has come meanwhile: a slow machine takes as long to start one.
        second = wait_for(lambda: ready(lambda s: s.started > first.started), 400)
        assert told("lost", key=f"serve-{first.name}")
        wait_for(lambda: ready(lambda s: s.name > second.name), 400)
        wait_for(lambda: told("served", key=f"serve-{second.name}"), 200)
        wait_for(
            lambda: any(e["event"] == "scored" and e["score"]["slot"] is not None for e in read_events(layout.journal)),
            400,
        )
    finally:
        run.send_signal(signal.SIGINT)
        output = run.communicate(timeout=120)[0]
    assert run.returncode == 130, output
    wait_for(lambda: subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout == "", 120)
    scored = [e for e in scan(layout).experiments if e.record.proposer == "llm" and e.score is not None]
    assert scored, output
    for stored in scored:
        folder = layout.experiment(stored.record.id)
        assert read_json(folder.proposal)["models"] == ["tiny"]
        assert folder.units.exists()
        rows = [json.loads(line) for line in folder.exchanges.read_text().splitlines()]
        replies = [row["reply"] for row in rows if row.get("role") == "researcher" and not row["error"]]
        assert "edit" in json.loads(replies[-1])
    assert not any(KEY in path.read_text(errors="ignore") for path in layout.root.rglob("*") if path.is_file())
