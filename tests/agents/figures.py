"""Two hundred proposals on a server that misbehaves in a third of all requests: what was lost, and why.

python -m tests.agents.figures [proposals]      real jobs, real HTTP, the scripted team; about half an hour on two cores
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asiarch_hpc.config import load_config
from asiarch_hpc.store.experiments import scan
from asiarch_hpc.store.journal import read_events
from asiarch_hpc.store.layout import RunLayout
from tests.agents.scripted_server import ScriptedServer
from tests.agents.scripted_team import hostile_team

SHARE = 0.33
TOKENS_PER_JOB = 120_000
TIMEOUT_MIN = 4.0
SETTINGS = (
    "proposer=llm", "fitness.judge=llm", "agents.model=scripted", "agents.backoff_s=0.02", "agents.backoff_limit_s=0.2",
    "agents.wait_s=60", f"agents.tokens_per_job={TOKENS_PER_JOB}", "agents.retries=4", "search.batch=20",
    "search.cold_start=20", "search.attempts=4", "search.slot_limit=3", "executor.kind=local",
    f"executor.propose.timeout_min={TIMEOUT_MIN}", "gate.exponent_lengths=[64,128,256]",
    "gate.lengths=[1,33]", "gate.prefix_lengths=[1,17]", "gate.drift_calls=4",
    "gate.causality_length=40", "limits.tick_seconds=0.2", "executor.max_jobs=3",
    *(f"agents.roles.{role}.timeout_s=2" for role in ("summarizer", "researcher", "novelty", "tagger")),
    *(f"agents.roles.{role}.timeout_s=2" for role in ("debugger", "analyst", "judge")),
)  # fmt: skip


def main(proposals: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        layout = RunLayout.of(Path(folder), "hostile")
        with ScriptedServer(hostile_team(7, SHARE), models=["scripted"]) as server:
            words = [*SETTINGS, f"agents.endpoints=[{server.url}]", f"search.designs={proposals}"]
            began = time.monotonic()
            code = _drive(layout, words, proposals)
            requests = len(server.chats)
        report(layout, words, requests, code, time.monotonic() - began)


def _drive(layout: RunLayout, words: list[str], proposals: int) -> int:
    """Runs until so many proposals have ended; returns the controller's exit code (130: ended by us)."""
    command = [sys.executable, "-m", "asiarch_hpc.cli", "explore", "--config", "smoke", "--run", "hostile"]
    command += ["--results", str(layout.root.parent), *words]
    run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while run.poll() is None and len(list(_ended(layout))) < proposals:
        time.sleep(1.0)
    if run.poll() is None:
        run.send_signal(2)
    return run.wait(120)


def _ended(layout: RunLayout) -> Iterator[dict[str, Any]]:
    """Events that end a proposal for a slot."""
    if layout.journal.exists():
        for event in read_events(layout.journal):
            mine = str(event.get("key", "")).startswith("propose-0")
            if mine and event["event"] in ("proposed", "failed", "gave_up"):
                yield event


def report(layout: RunLayout, words: list[str], requests: int, code: int, seconds: float) -> None:
    events = list(read_events(layout.journal))
    ended = list(_ended(layout))
    found = scan(layout)
    stored = {e.record.id for e in found.experiments if e.record.role == "candidate"}
    proposed = [e for e in ended if e["event"] == "proposed"]
    lost = [e for e in proposed if not e["duplicate"] and e["id"] not in stored]
    causes = Counter(str(e["cause"]) for e in ended if e["event"] != "proposed")
    causes["duplicate of a design of the same batch"] += sum(bool(e["duplicate"]) for e in proposed)
    codes = Counter(
        next(f["code"] for f in e["gate"]["findings"] if f["severity"] == "reject")
        for e in proposed
        if not e["duplicate"] and not e["gate"]["passed"]
    )
    told = ("proposed", "failed", "assessed", "lost", "interrupted")
    agents = [e for e in events if e["event"] in told and e.get("tokens")]
    admitted = sum(e["gate"]["passed"] for e in proposed if not e["duplicate"])
    died = [e for e in events if e["event"] in ("lost", "gave_up", "unassessed") and not e.get("interrupted")]
    again = [e for e in died if any(mark in str(e) for mark in ("MissingAssessmentError", "model.", "NoServerError"))]
    deaths = [e for e in died if e not in again]
    limit = load_config("smoke", words).executor.propose.timeout_min * 60
    rows = {
        "proposals": len(ended),
        "requests, of which a third met a misdeed": requests,
        "designs stored; admitted": f"{len(stored)}; {admitted}",
        "jobs started again since server or model failed": len([e for e in again if e["event"] == "lost"]),
        "crashed jobs; experiments lost; files damaged": f"{len(deaths)}; {len(lost)}; {len(found.damaged)}",
        "proposals without a design, each with its cause": sum(causes.values()),
        "trainings repaired": sum(e.record.operator == "debug" for e in found.experiments),
        "assessed by judge and Analyst": sum(e["event"] == "assessed" for e in events),
        "most tokens of a job; limit": f"{max((e['tokens'] for e in agents), default=0)}; {TOKENS_PER_JOB}",
        "longest agent job; limit": f"{max((e.get('seconds', 0) for e in agents), default=0):.0f} s; {limit:.0f} s",
        "exit code of the controller (130: ended when enough)": code,
        "wall time": f"{seconds / 60:.1f} min",
    }
    for name, value in rows.items():
        print(f"| {name:<55} | {value!s:>20} |")
    print("causes:", json.dumps(dict(causes.most_common())))
    print("refused by the gate:", json.dumps(dict(codes.most_common())))
    for event in deaths[:5]:
        print("crash:", json.dumps(event)[:400])


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
