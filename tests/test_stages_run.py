"""A search over two scales as a user runs it, with real jobs on this machine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from asiarch_hpc.store.experiments import scan
from asiarch_hpc.store.layout import RunLayout
from tests.conftest import asiarch, command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# One design, one baseline: as few trainings as two scales need.
SMALL = [
    *("search.designs=1", "search.cold_start=1", "baselines.upper=delta_net"),
    *("stages.verify.promote.beat_baseline=false", "stages.verify.baselines=[]", "stages.verify.scale.dim=24"),
    *("stages.verify.scale.depth=2", "stages.verify.scale.steps=20", "stages.verify.evaluation.questions=5"),
    *("stages.verify.scale.match=depth",),
]


def test_a_design_goes_on_to_a_larger_scale(tmp_path: Path) -> None:
    layout = RunLayout.of(tmp_path, "two")
    done = subprocess.run(command(tmp_path, "two", *SMALL), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "leaderboard of stage verify" in done.stdout
    (candidate,) = (e for e in scan(layout).experiments if e.record.role == "candidate" and e.score is not None)
    (reference,) = (e for e in scan(layout).experiments if e.record.role == "baseline")
    assert [trial.name for trial in candidate.trials] == ["smoke-s0", "verify-s0"]
    assert [trial.name for trial in reference.trials] == [f"{s}-s{n}" for s in ("smoke", "verify") for n in range(3)]
    at_verify = {e.record.role: e.trials[-1].record for e in (candidate, reference)}
    assert all(record is not None and (record.scale, record.steps) == ("verify", 20) for record in at_verify.values())
    large, target = at_verify["candidate"], at_verify["baseline"]
    assert large is not None
    assert target is not None
    assert (target.dim, target.depth) == (24, 2)
    assert large.dim == 24
    assert target.parameters > 2 * reference.gate.parameters
    assert abs(large.parameters / target.parameters - 1) <= 0.5  # gate.parameter_tolerance of `smoke`
    assert all(task.questions == 5 for task in candidate.trials[-1].evaluation.tasks.values())  # type: ignore[union-attr]
    summary = layout.stage("verify")
    before = json.loads(summary.read_text())
    assert [decision["promoted"] for decision in before["decisions"]] == [True]
    assert len(before["scores"]) == 2
    rebuilt = asiarch("rebuild", "--run", "two", "--results", str(tmp_path))
    assert "same state as before" in rebuilt.stdout, rebuilt.stdout + rebuilt.stderr
    assert json.loads(summary.read_text()) == before
    status = asiarch("status", "--run", "two", "--results", str(tmp_path))
    assert "stage verify: 1 of 1 designs promoted, 1 scored" in status.stdout
