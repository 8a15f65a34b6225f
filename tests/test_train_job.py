"""Job `train`, where no training is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from asiarch_hpc.records import Json
from asiarch_hpc.store.files import read_json, write_json
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


def test_records_that_do_not_belong_together_are_not_believed(payload: Json) -> None:
    path = payload["trial"].evaluation
    write_json(path, {**read_json(path), "loss": 0.1})
    message = message_of(training(payload["layout"], payload["identifier"], 2))
    assert message["status"] != "ok"
