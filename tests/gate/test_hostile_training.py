"""A hostile design that the gate let through: its training and its evaluation hold it as well."""

from __future__ import annotations

import mmap
import os
import textwrap
from pathlib import Path

import pytest

from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.gate.sandbox import choose_rung, containment
from asiarch_hpc.store.layout import RunLayout, TrialLayout
from jobs import train
from jobs.entry import Attempt
from jobs.training import Training
from jobs.workspace import Workspace
from tests.gate.conftest import sleepers

_ATTACK = """
import os, pathlib, subprocess, sys
escaped = []
def attempt(name, function):
    try:
        function()
        escaped.append(name)
    except OSError:
        pass
trial = pathlib.Path({trial!r})
attempt("writes its evaluation", lambda: (trial / "evaluation.json").write_text("{{}}"))
attempt("writes its record", lambda: (trial / "trial.json").write_text("{{}}"))
attempt("reads other results", lambda: pathlib.Path({other!r}).read_text())
attempt("reads the corpus", lambda: pathlib.Path({corpus!r}).read_bytes())
attempt("lists the run", lambda: os.listdir({run!r} + "/experiments"))
attempt("opens a socket", lambda: __import__("socket").socket())
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", {mark!r}])
if escaped:
    raise RuntimeError(f"escaped: {{escaped}}")
"""


@pytest.fixture
def rung() -> str:
    chosen = choose_rung("auto")
    if not containment(chosen) >= {"files", "reading", "network", "processes"}:
        pytest.skip(f"rung {chosen} does not claim to hold all on this kernel")
    return chosen


@pytest.mark.slow  # for the run that it starts from
def test_training_and_evaluation_hold_what_the_gate_let_through(
    calm: RunLayout, tmp_path: Path, mark: str, rung: str
) -> None:
    space = Workspace.of(calm)
    experiment = next(folder for folder in calm.all_experiments() if (folder.trials / "smoke-s0").is_dir())
    gate = space.gate_report(experiment.root.name)
    trial = TrialLayout(tmp_path / "trials" / "smoke-s0")
    trial.root.mkdir(parents=True)
    words = {
        "trial": str(trial.root),
        "other": str(experiment.trial("smoke-s0").evaluation),
        "corpus": str(space.corpus.path / space.corpus.names[0]),
        "run": str(calm.root),
        "mark": mark,
    }
    source = compose(seed_tree("delta_net")) + textwrap.dedent(_ATTACK.format(**words))
    attempt = Attempt(RunLayout(tmp_path), "train", "work", 0, 0, mmap.mmap(-1, 1))
    attempt.claim()

    training = Training(
        attempt=attempt, space=space, trial=trial, source=source, gate=gate, seed=0, beside=None, baseline=True
    )
    outcome = train._train(training)
    assert outcome["sandbox"] == rung
    assert sorted(os.listdir(trial.root)) == ["live", "metrics.jsonl"]
    evaluation = train._evaluate(training, outcome)
    assert evaluation.weights_sha256 == outcome["weights_sha256"]
    assert sorted(os.listdir(trial.root)) == ["live", "metrics.jsonl"]
    assert sleepers(mark) == []
