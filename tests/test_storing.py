"""What a job that made a design leaves of it."""

from __future__ import annotations

import mmap
import signal
from pathlib import Path

import pytest

from asiarch_hpc.agents.draft import Draft
from asiarch_hpc.errors import StoppedError
from asiarch_hpc.records import Experiment, Finding, GateReport
from asiarch_hpc.store.layout import RunLayout
from jobs.entry import Attempt
from jobs.storing import store


@pytest.mark.parametrize("code", ["sandbox.killed", "static.import"])
@pytest.mark.parametrize("told", [True, False], ids=["told to stop", "by itself"])
def test_a_gate_that_was_ended_with_its_job_gives_no_verdict(tmp_path: Path, code: str, told: bool) -> None:
    layout = RunLayout(tmp_path)
    layout.root.mkdir(exist_ok=True)
    attempt = Attempt(layout, "job_0", "propose-00000-00", 1, 0, mmap.mmap(-1, 1))
    attempt.claim()
    if told:
        attempt.stop[0] = signal.SIGTERM
    record = Experiment(
        id="0123456789abcdef", name="new", role="candidate", form="tree", operator="mutation", proposer="recombine",
        policy="random", source_sha256="", created="2026-11-26T00:00:00Z", slot=0, attempt=0,
    )  # fmt: skip
    report = GateReport(passed=False, findings=(Finding(code=code, severity="reject", message="", hint=""),))
    draft = Draft(name="new", motivation="A test.", source="", form="tree", tree=None)
    if told and code == "sandbox.killed":
        with pytest.raises(StoppedError):
            store(attempt, record, draft, report)
    else:
        assert store(attempt, record, draft, report)["gate"]["passed"] is False
    assert layout.experiment(record.id).root.exists() == (not told or code != "sandbox.killed")
