"""The whole system as a user runs it: `asiarch explore` in a process of its own, with real jobs on this machine."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from asiarch_hpc.records import Evaluation, TrialRecord, from_json
from asiarch_hpc.store.curves import read_curves
from asiarch_hpc.store.experiments import scan
from asiarch_hpc.store.journal import read_events
from asiarch_hpc.store.layout import RunLayout
from tests.conftest import asiarch, command, pools, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 25


def job_processes(layout: RunLayout, text: str = "") -> list[int]:
    """Processes of the run's jobs (submitit's runner, not its supervisor) whose folder contains `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "submitit.core._submit" in words and any(str(layout.jobs) in w and text in w for w in words):
            found.append(int(path.parent.name))
    return found


def test_a_run_leaves_what_the_design_says(calm: RunLayout) -> None:
    found = scan(calm)
    assert not found.damaged
    assert sorted(pools(calm)) == ["000000.json", "000001.json", "000002.json"]
    scored = [e for e in found.experiments if e.score is not None]
    assert sum(e.record.role == "candidate" for e in scored) == 4
    assert sum(e.record.role == "baseline" for e in scored) == 2
    for experiment in found.experiments:
        folder = calm.experiment(experiment.record.id)
        files = [path for path in folder.root.rglob("*") if path.is_file()]
        assert len(files) <= 20
        if experiment.score is None:
            continue
        for trial in experiment.trials:
            assert all(path.is_file() for path in folder.trial(trial.name).root.iterdir())
            assert trial.evaluation is not None
            assert trial.record is not None
            assert trial.evaluation.weights_sha256 == trial.record.weights_sha256
            assert trial.evaluation.loss < trial.evaluation.untrained_loss
            curves = read_curves(folder.trial(trial.name).curves)
            assert list(curves["step"]) == list(range(1, 31))
            assert "trained 30 steps" in folder.trial(trial.name).log.read_text()
    assert not list(calm.inbox.iterdir())
    assert [path.name for path in calm.jobs.iterdir()] == ["attempts"]
    assert not job_processes(calm)


def test_baselines_have_three_seeds_and_a_spread(calm: RunLayout) -> None:
    for stats in pools(calm)["000000.json"]["baselines"]:
        assert stats["seeds"] == 3
        assert stats["loss_sd"] > 0


@pytest.mark.gpu
@pytest.mark.sandboxed
def test_trials_train_and_are_evaluated_on_a_gpu(results: Path) -> None:
    words = command(results, "gpu", "scale.device=cuda", "executor.train.gpus=1", "search.designs=2")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = [t for e in scan(RunLayout.of(results, "gpu")).experiments if e.score is not None for t in e.trials]
    assert len(trials) == 8
    assert {t.record.device for t in trials if t.record is not None} != {"cpu"}
    assert {t.record.precision for t in trials if t.record is not None} == {"bf16"}


def test_killed_again_and_again_the_run_is_the_same(results: Path, calm: RunLayout) -> None:
    """`kill -9` of the controller at 25 random instants, of one job, and a stop of another in mid-training."""
    rng = random.Random(7)
    layout = RunLayout.of(results, "chaos")
    kills, wounded, interrupted = 0, False, False
    while kills < KILLS:
        with subprocess.Popen(command(results, "chaos"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            try:
                process.wait(timeout=rng.uniform(0.05, 2.5))
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            else:
                break
        if not wounded and kills > 5 and (jobs := job_processes(layout, "-train-")):
            os.kill(jobs[0], signal.SIGKILL)
            wounded = True
        elif wounded and not interrupted and list(layout.experiments.glob("*/*/trials/*/metrics.jsonl")):
            for job in job_processes(layout, "-train-")[:1]:  # none, where the trainings have just ended
                os.kill(job, signal.SIGUSR2)
                interrupted = True
    last = subprocess.run(command(results, "chaos"), capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stdout + last.stderr
    assert kills >= KILLS
    assert wounded
    assert pools(layout) == pools(calm)
    here, there = scan(layout), scan(calm)
    assert [e.record.id for e in here.experiments] == [e.record.id for e in there.experiments]
    assert not here.damaged
    events = list(read_events(layout.journal))
    for name in ("trained", "proposed", "scored"):
        keys = [e.get("key") or e["score"]["experiment"] for e in events if e["event"] == name]
        assert len(keys) == len(set(keys)), f"{name} twice"
    assert not job_processes(layout)


def test_status_rebuild_and_resuming(results: Path, calm: RunLayout) -> None:
    before = pools(calm)
    status = asiarch("status", "--run", "calm", "--results", str(results))
    assert status.returncode == 0
    assert "scored 4 of 4" in status.stdout
    rebuilt = asiarch("rebuild", "--run", "calm", "--results", str(results))
    assert "same state as before" in rebuilt.stdout, rebuilt.stdout + rebuilt.stderr
    again = subprocess.run(command(results, "calm"), capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "leaderboard" in again.stdout
    assert pools(calm) == before
    changed = subprocess.run(command(results, "calm", "search.seed=5"), capture_output=True, text=True, check=False)
    assert changed.returncode == 1
    assert "search.seed: 0 -> 5" in changed.stderr


def test_interrupting_at_the_terminal_ends_the_jobs_and_the_run_resumes(results: Path) -> None:
    layout = RunLayout.of(results, "interrupted")
    words = command(results, "interrupted", "search.designs=1", "search.cold_start=1")
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background job ignores
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear) as process:
        wait_for(lambda: list(layout.experiments.glob("*/*/trials/*/metrics.jsonl")))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert process.returncode == 130
    assert "resumes the run" in output
    assert errors == ""
    wait_for(lambda: not job_processes(layout), seconds=20)


@pytest.fixture
def corpus_override(tmp_path: Path) -> Iterator[list[str]]:
    return ["data.source=text", f"data.paths=[{tmp_path / 'nowhere'}]"]


def test_a_missing_corpus_is_one_clear_error(results: Path, corpus_override: list[str]) -> None:
    done = subprocess.run(
        command(results, "nocorpus", *corpus_override), capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_results_folder_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    done = subprocess.run(command(tmp_path / "results", "x"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a file stands where a folder is expected" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_number_of_a_trial_parses(calm: RunLayout) -> None:
    for path in calm.experiments.glob("*/*/trials/*/*.json"):
        cls = TrialRecord if path.name == "trial.json" else Evaluation
        assert from_json(cls, json.loads(path.read_text())).attempt == "001.000"
