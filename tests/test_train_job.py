"""Job `train`, where no training is needed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.records import Evaluation, Json, TrialRecord, from_json
from asiarch_hpc.store.files import read_json, write_json
from asiarch_hpc.training.objective import Objective
from jobs import train
from jobs.entry import Attempt
from tests.controller.simulated import SimulatedJobs
from tests.trials import message_of, one_design, training


@pytest.fixture
def payload(tmp_path: Path) -> Json:
    """Of an attempt that left its records and nothing else: its design cannot even be parsed."""
    layout, identifier = one_design(tmp_path, "scale.keep_weights=true")
    layout.experiment(identifier).architecture.write_text("broken(")
    trial = layout.experiment(identifier).trial("smoke-s0")
    found = SimulatedJobs(layout).train({"experiment": identifier, "trial": "smoke-s0"})
    trial.live.mkdir()
    (trial.live / "checkpoint.pt").write_text("old")
    (trial.live / "checkpoint.pt.weights").write_text("weights")
    trial.metrics.write_text("{}\n")
    return {"layout": layout, "identifier": identifier, "trial": trial, "payload": found}


def test_what_a_killed_attempt_had_finished_is_not_done_again(payload: Json) -> None:
    message = message_of(training(payload["layout"], payload["identifier"], 2))
    assert message["status"] == "ok", message
    assert message["payload"] == payload["payload"]
    left = sorted(path.name for path in payload["trial"].root.iterdir())
    assert left == ["evaluation.json", "trial.json", "weights.pt"]
    assert payload["trial"].weights.read_text() == "weights"


def test_what_no_design_could_do_here_stops_the_run_and_blames_none(tmp_path: Path) -> None:
    layout, identifier = one_design(tmp_path)
    record = read_json(layout.record)
    record["config"]["scale"]["precision"] = "fp8"  # as bf16 is on a GPU that has none
    write_json(layout.record, record)
    message = message_of(training(layout, identifier))
    assert (message["status"], message["cause"]) == ("fatal", "ConfigError"), message
    assert "scale.precision='fp8'" in message["message"]
    assert not layout.experiment(identifier).trial("smoke-s0").failure.exists()


@pytest.mark.parametrize("told", [True, False], ids=["told to stop", "by itself"])
def test_an_evaluation_that_was_told_to_stop_is_no_fault_of_the_design(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Preempted, or at its time limit: all processes of the job get the signal, the model's as well."""

    def ended(attempt: Attempt, *rest: object) -> Evaluation:
        if told:
            os.kill(os.getpid(), signal.SIGTERM)
        raise EvaluationError("the model's process ended: killed by SIGTERM")

    monkeypatch.setattr(train, "_train", lambda training: {"weights_sha256": ""})
    monkeypatch.setattr(train, "evaluate_trial", ended)
    layout, identifier = one_design(tmp_path)
    message = message_of(training(layout, identifier))
    assert message["status"] == ("interrupted" if told else "failed"), message
    assert layout.experiment(identifier).trial("smoke-s0").failure.exists() == (not told)


def test_the_record_says_why_a_design_was_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ValueError("no such operation\nwith details")

    make = Objective.loss
    monkeypatch.setattr(Objective, "compile", lambda self: setattr(self, "compiled", True))
    monkeypatch.setattr(Objective, "loss", lambda self, *a, **k: refuse() if self.compiled else make(self, *a, **k))
    layout, identifier = one_design(tmp_path, "scale.steps=2", "scale.warmup_steps=1")
    message = message_of(training(layout, identifier))
    assert message["status"] == "ok", message
    record = read_json(layout.experiment(identifier).trial("smoke-s0").record)
    assert (record["compiled"], record["not_compiled_because"]) == (False, "ValueError: no such operation")
    del record["not_compiled_because"]  # as older versions wrote it
    assert from_json(TrialRecord, record).not_compiled_because == ""


def test_a_design_is_as_large_as_it_was_counted(tmp_path: Path) -> None:
    """At the scale of a stage it is counted without being allocated, which a constructor can tell."""
    layout, identifier = one_design(tmp_path, "scale.steps=2", "scale.warmup_steps=1")
    path = layout.experiment(identifier).gate
    write_json(path, {**read_json(path), "parameters": 100})
    message = message_of(training(layout, identifier))
    assert (message["status"], message["cause"]) == ("failed", "size"), message
    assert "100 were counted at dim 16 and depth 1" in message["message"]


def test_records_that_do_not_belong_together_are_not_believed(payload: Json) -> None:
    path = payload["trial"].evaluation
    write_json(path, {**read_json(path), "loss": 0.1})
    message = message_of(training(payload["layout"], payload["identifier"], 2))
    assert message["status"] != "ok"
