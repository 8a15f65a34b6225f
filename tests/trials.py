"""A run with one admitted design, whose trainings can be started by hand as jobs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from asiarch_hpc.config import load_config, to_dict
from asiarch_hpc.designs.hashing import design_id, source_sha256
from asiarch_hpc.records import Experiment, GateReport, Json, Role
from asiarch_hpc.store.experiments import write_experiment
from asiarch_hpc.store.files import read_json, write_json
from asiarch_hpc.store.layout import RunLayout
from jobs.entry import Entry
from tests.training.conftest import ASKING_SOURCE, write_texts

SOURCE = ASKING_SOURCE.replace("nn.Dropout(0.1)", "nn.Dropout(0.0)")  # its random numbers differ between processes


def one_design(folder: Path, *overrides: str, source: str = SOURCE, role: Role = "candidate") -> tuple[RunLayout, str]:
    """A run in `folder/run` at the smoke scale, and the design's id."""
    texts = write_texts(folder / "texts") if not (folder / "texts").exists() else folder / "texts"
    config = load_config(
        "smoke",
        [
            "executor.kind=local",
            "evaluation.tasks=[recall]",
            "evaluation.min_margin=0",
            "data.source=text",
            f"data.paths=[{texts}]",
            "data.tokenizer=bytes",
            "scale.device=cpu",
            *overrides,
        ],
    )
    layout = RunLayout(folder / "run")
    for place in (layout.root, layout.inbox, layout.jobs):
        place.mkdir(exist_ok=True)
    write_json(layout.record, {"config": to_dict(config)})
    identifier = design_id(source)
    record = Experiment(
        id=identifier, name="tiny", role=role, form="tree", operator="seed", proposer="seed", policy="random",
        source_sha256=source_sha256(source.encode()), created="2026-11-26T00:00:00Z",
    )  # fmt: skip
    gate = GateReport(passed=True, dim=16, depth=1)
    write_experiment(layout, record, source=source, motivation="A test.", gate=gate)
    return layout, identifier


def training(layout: RunLayout, identifier: str, submission: int = 1) -> Entry:
    """The job that trains the design."""
    arguments: Json = {"experiment": identifier, "trial": "smoke-s0", "seed": 0}
    return Entry(str(layout.root), f"job_{submission}", "train", submission, "jobs.train:run", arguments)


def message_of(entry: Entry) -> Any:
    """Runs a job in this process; its message, which is taken out of the inbox."""
    handlers = [signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)]
    try:
        entry()
    finally:
        for number, handler in zip((signal.SIGUSR2, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
    path = RunLayout(Path(entry.root)).message(entry.job, 0)
    message = read_json(path)
    path.unlink()
    return message
