"""Whole runs with agents: real HTTP, real jobs, the scripted team, from the pool to the score and back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from asiarch_hpc.records import Assessment, from_json
from asiarch_hpc.store.experiments import StoredExperiment, scan
from asiarch_hpc.store.files import read_json
from asiarch_hpc.store.journal import read_events
from asiarch_hpc.store.layout import RunLayout
from tests.agents.scripted_server import ScriptedServer
from tests.agents.scripted_team import Team
from tests.conftest import asiarch, command, pools

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KEY = "sk-a-secret-of-this-test"
SETTINGS = (
    "proposer={llm: 0.7, recombine: 0.3}", "fitness.judge=llm", "agents.model=scripted", "agents.backoff_s=0.05",
    "agents.backoff_limit_s=0.2", "agents.wait_s=20", "search.designs=5", "search.batch=3", "search.cold_start=2",
    "executor.train.max_jobs=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(results: Path) -> RunLayout:
    """One run; the server lives as long as its tests, though none of them may need it."""
    with ScriptedServer(Team().script(), models=["scripted"], key=KEY) as server:
        words = command(results, "team", *SETTINGS, f"agents.endpoints=[{server.url}]")
        environment = {**os.environ, "ASIARCH_API_KEY": KEY}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    (results / "team.out").write_text(done.stdout)
    return RunLayout.of(results, "team")


@pytest.fixture(scope="module")
def written(run: RunLayout) -> list[StoredExperiment]:
    """What language models proposed."""
    found = scan(run)
    assert not found.damaged
    return [stored for stored in found.experiments if stored.record.proposer == "llm"]


def test_every_slot_is_scored_and_both_proposers_took_part(run: RunLayout) -> None:
    scored = [e for e in scan(run).experiments if e.record.role == "candidate" and e.score is not None]
    assert len(scored) == 5
    assert {e.record.proposer for e in scored} == {"llm", "recombine"}
    assert all(e.score is not None and e.score.judgement.source == "llm" for e in scored)
    anchors = [e.score.judgement for e in scan(run).experiments if e.record.role == "baseline" and e.score]
    assert sorted((j.raw, j.source) for j in anchors) == [(5.0, "anchor"), (10.0, "anchor")]


def test_an_experiment_keeps_every_exchange(run: RunLayout, written: list[StoredExperiment]) -> None:
    for stored in written:
        folder = run.experiment(stored.record.id)
        rows = [json.loads(line) for line in folder.exchanges.read_text().splitlines()]
        roles = [row["role"] for row in rows if "role" in row]
        assert {"researcher", "tagger"} <= set(roles) or "debugger" in roles
        assert all(row["tokens_in"] > 0 and row["messages"] and row["model"] for row in rows if "role" in row)
        proposal = read_json(folder.proposal)
        assert proposal["tokens"] > 0
        assert len([path for path in folder.root.rglob("*") if path.is_file()]) <= 20
        if stored.score is not None:
            assert roles.count("judge") == 3
            assessment = from_json(Assessment, read_json(folder.assessment), source="test")
            assert assessment.analysis is not None
            assert len(assessment.cognitions) > 0
            assert assessment.judge == stored.score.judgement
            assert len(assessment.judge.samples) == 3
    for folder in run.all_experiments():
        assert len([path for path in folder.root.rglob("*") if path.is_file()]) <= 20


def test_a_failed_training_is_repaired_and_trained_again(run: RunLayout, written: list[StoredExperiment]) -> None:
    repaired = [stored for stored in written if stored.record.operator == "debug"]
    assert len(repaired) == 1
    proposal = read_json(run.experiment(repaired[0].record.id).proposal)
    broken = run.experiment(proposal["repairs"])
    assert proposal["cause"] == "non_finite_loss"
    assert read_json(broken.trial("smoke-s0").failure)["cause"] == "non_finite_loss"
    assert repaired[0].score is not None
    assert "Its argument is bounded." in run.experiment(repaired[0].record.id).motivation.read_text()


def test_what_the_gate_refused_was_sent_back(written: list[StoredExperiment], run: RunLayout) -> None:
    mended = [read_json(run.experiment(s.record.id).proposal) for s in written if s.record.operator == "llm"]
    assert any(proposal["gate_repairs"] == 1 for proposal in mended)
    assert all(item["origin"] == "cognition" for proposal in mended for item in proposal["components"])


def test_the_second_generation_reads_analyses_and_papers(run: RunLayout, written: list[StoredExperiment]) -> None:
    later = [stored for stored in written if stored.record.generation > 0 and stored.record.operator == "llm"]
    assert later
    told = "".join(run.experiment(stored.record.id).exchanges.read_text() for stored in later)
    assert "the memory never overwrites a value" in told
    assert "Literature for the parent" in told


def test_the_end_shows_proposers_side_by_side(run: RunLayout) -> None:
    printed = (run.root.parent / "team.out").read_text()
    assert "proposers" in printed
    assert "tokens/scored" in printed
    assert "median of several gradings by a language model" in printed


@pytest.mark.parametrize(("operator", "files"), [("llm", 8), ("debug", 8), ("recombine", 1)])
def test_a_replay_without_a_server_gives_the_same_files(run: RunLayout, operator: str, files: int) -> None:
    """The proposal's files, and what judge and Analyst said; of a recombined design only the latter."""
    scored = [stored for stored in scan(run).experiments if stored.score is not None and stored.record.slot is not None]
    chosen = [stored for stored in scored if operator in (stored.record.operator, stored.record.proposer)][-1]
    done = asiarch("replay", "--results", str(run.root.parent), "--run", "team", chosen.record.id)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DIFFERS" not in done.stdout
    assert done.stdout.count("same") == files
    assert "assessment.json" in done.stdout


def test_a_replay_notices_an_edited_transcript(run: RunLayout, written: list[StoredExperiment]) -> None:
    chosen = next(stored for stored in written if stored.record.operator == "llm")
    path = run.experiment(chosen.record.id).exchanges
    before = path.read_text()
    try:
        path.write_text(before.replace("causal language models", "causal language model", 1))
        done = asiarch("replay", "--results", str(run.root.parent), "--run", "team", chosen.record.id)
        assert done.returncode == 1
        assert "asks something else than the recorded one" in done.stderr
    finally:
        path.write_text(before)


def test_the_key_is_nowhere(run: RunLayout) -> None:
    for path in run.root.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_a_rebuilt_run_has_the_same_pool(run: RunLayout) -> None:
    before = pools(run)
    tokens = sum(event.get("tokens") or 0 for event in read_events(run.journal))
    done = asiarch("rebuild", "--results", str(run.root.parent), "--run", "team")
    assert done.returncode == 0, done.stderr
    assert "same state as before" in done.stdout
    assert pools(run) == before
    assert 0 < sum(event.get("tokens") or 0 for event in read_events(run.journal)) <= tokens
