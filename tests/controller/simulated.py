"""A scheduler and jobs inside the test's process, so that a crash can be placed between any two file operations.

It stands for nothing that a real scheduler does: it only lets jobs end at once, with results that depend on the
work alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

from asiarch_hpc.config import Config
from asiarch_hpc.controller.loop import Controller
from asiarch_hpc.controller.run import load_state
from asiarch_hpc.controller.scheduler import JobRequest, JobStatus
from asiarch_hpc.records import (
    Analysis,
    Assessment,
    Evaluation,
    Experiment,
    GateReport,
    Json,
    Judgement,
    TaskScore,
    TrialRecord,
    to_json,
)
from asiarch_hpc.store.experiments import write_experiment
from asiarch_hpc.store.files import json_bytes, write_json
from asiarch_hpc.store.layout import RunLayout
from asiarch_hpc.store.lease import take_lease

PARTS = ("motivation", "results", "expectation", "explanation", "synthesis", "shortcomings")


def config_of(*, team: bool = False, **search: object) -> Config:
    """`team` lets language models propose, repair, judge and analyse."""
    config = Config()
    if team:
        config.proposer = {"llm": 0.7, "recombine": 0.3}
        config.agents.endpoints = ["http://127.0.0.1:1/v1"]
        config.fitness.judge = "llm"
    for name, value in {"designs": 6, "batch": 2, "cold_start": 2, "attempts": 2, **search}.items():
        setattr(config.search, name, value)
    config.limits.min_free_megabytes = 0
    return config


def chance(*words: object) -> random.Random:
    """The same numbers for the same words, in every process."""
    return random.Random("/".join(map(str, words)))


class SimulatedJobs:
    """Runs the work of a request at once, in the way of `jobs.entry`."""

    cause = "diverged"  # of trainings that fail

    def __init__(self, layout: RunLayout, reject: float = 0.2, fail: float = 0.2) -> None:
        self.layout = layout
        self.reject = reject
        self.fail = fail

    def run(self, request: JobRequest) -> None:
        work, submission = request.arguments["work"], request.arguments["submission"]
        folder = self.layout.attempts(work)
        if folder.is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        claim = folder / f"{submission:03d}.000"
        if claim.exists() or max((p.name for p in folder.iterdir()), default="") > claim.name:
            return
        claim.touch()
        message: Json = {"status": "ok", "job": request.name, "work": work, "submission": submission, "restart": 0}
        message |= {"seconds": 1.0, "host": "here"}
        arguments = request.arguments["arguments"]
        if request.kind in ("propose", "debug"):
            message["payload"] = self.propose(arguments, request.entry)
        elif request.kind == "assess":
            message["payload"] = self.assess(arguments)
        elif chance(arguments["experiment"]).random() < self.fail and arguments["trial"] == "explore-s0":
            failure = {"stage": "training", "cause": self.cause, "message": "loss 99"}
            trial = self.layout.experiment(arguments["experiment"]).trial(arguments["trial"])
            if "baseline" in self._role(arguments["experiment"]):
                message["payload"] = self.train(arguments)
            else:
                write_json(trial.failure, failure)
                message |= {"status": "failed", **failure}
        else:
            message["payload"] = self.train(arguments)
        write_json(self.layout.message(request.name, 0), message)

    def _role(self, identifier: str) -> str:
        return self.layout.experiment(identifier).record.read_text()

    def propose(self, arguments: Json, entry: str = "jobs.propose:candidate") -> Json:
        proposer = "recombine" if entry.startswith("jobs.propose") else "llm"
        slot, attempt = arguments.get("slot"), arguments.get("attempt")
        name = arguments.get("design") or f"design-{slot}-{attempt}"
        source = f"NAME = {name!r}\n"
        digest = hashlib.sha256(source.encode()).hexdigest()
        passed = slot is None or chance("gate", name).random() >= self.reject
        gate = GateReport(
            passed=passed, dim=64, depth=3, parameters=1000, flops_per_token=1e5, modelled_seconds_per_token=1e-6,
            time_exponent=1.0,
        )  # fmt: skip
        record = Experiment(
            id=digest[:16], name=name, role="baseline" if slot is None else "candidate", form="tree",
            operator="debug" if "experiment" in arguments else "llm" if proposer == "llm" else "mutation",
            proposer=proposer, policy="asi_arch", source_sha256=digest,
            created="2026-01-01T00:00:00", slot=slot, attempt=attempt,
        )  # fmt: skip
        write_experiment(self.layout, record, source=source, motivation="none", gate=gate)
        fields = {"id": record.id, "name": name, "role": record.role, "form": "tree", "gate": to_json(gate)}
        lineage = {"operator": record.operator, "proposer": record.proposer, "parents": []}
        return {"duplicate": False, **fields, **lineage}

    def assess(self, arguments: Json) -> Json:
        """A grade that depends on the design alone."""
        identifier = arguments["experiment"]
        grade = 1.0 + 9.0 * chance("judge", identifier).random()
        judge = Judgement(raw=grade, source="llm", version="llm/1") if arguments["judge"] else None
        found = Assessment(
            experiment=identifier, judge=judge, analysis=Analysis(**dict.fromkeys(PARTS, "said")), tokens=7
        )
        write_json(self.layout.experiment(identifier).assessment, to_json(found))
        return {"assessment": to_json(found), "tokens": 7}

    def train(self, arguments: Json) -> Json:
        identifier, trial = arguments["experiment"], arguments["trial"]
        loss = 4.0 + 0.2 * chance("loss", identifier, trial).random()
        evaluation = Evaluation(
            experiment=identifier, trial=trial, attempt="001.000", weights_sha256="w", loss=loss,
            bits_per_byte=loss / 2, untrained_loss=7.6, untrained_bits_per_byte=4.0, uniform_loss=7.6,
            benchmark=0.3, tasks={"t": TaskScore(accuracy=0.3, stderr=0.01, chance=0.25, questions=100)},
        )  # fmt: skip
        record = TrialRecord(
            experiment=identifier, name=trial, scale=trial.partition("-")[0], seed=0, attempt="001.000",
            dim=64, depth=3, parameters=1000, steps=1, tokens=1, first_loss=7.0, final_loss=loss, train_seconds=1.0,
            tokens_per_second=1.0, weights_sha256="w", corpus_key="c", device="cpu", precision="fp32",
            evaluation_sha256=hashlib.sha256(json_bytes(to_json(evaluation))).hexdigest(),
        )  # fmt: skip
        folder = self.layout.experiment(identifier).trial(trial)
        write_json(folder.record, to_json(record))
        write_json(folder.evaluation, to_json(evaluation))
        return {"evaluation": to_json(evaluation), "trial": to_json(record)}


class SimulatedScheduler:
    """Jobs survive the controller: `pending` is what a real scheduler would hold."""

    name = "local"

    def __init__(self, jobs: SimulatedJobs, limit: int = 3, order: random.Random | None = None) -> None:
        self.jobs = jobs
        self.limit = limit
        self.order = order
        self.pending: list[JobRequest] = []
        self.queries = 0
        self.submitted: list[str] = []

    def room(self, unfinished: int) -> int:
        return max(0, self.limit - unfinished)

    def submit(self, tag: str, jobs: Sequence[JobRequest]) -> list[str]:
        self.pending += jobs
        self.submitted += [job.name for job in jobs]
        return [job.name for job in jobs]

    def query(self) -> dict[str, JobStatus]:
        self.queries += 1
        return {job.name: JobStatus(name=job.name, state="running", scheduler_id="1") for job in self.pending}

    def cancel(self, names: Sequence[str]) -> None:
        self.pending = [job for job in self.pending if job.name not in names]

    def explain(self, names: Sequence[str]) -> dict[str, str]:
        return {}

    def work(self) -> None:
        """Lets one job end."""
        if self.pending:
            index = self.order.randrange(len(self.pending)) if self.order else 0
            self.jobs.run(self.pending.pop(index))


class Clock:
    """Seconds that pass only when they are read."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def controller_of(layout: RunLayout, config: Config, scheduler: SimulatedScheduler, clock: Clock) -> Controller:
    for folder in (layout.inbox, layout.pool, layout.experiments, layout.jobs):
        folder.mkdir(parents=True, exist_ok=True)
    lease = take_lease(layout, stale_seconds=90)
    state = load_state(layout, config)
    return Controller(layout, config, scheduler, state, lease=lease, tag_prefix="run", clock=clock)


def drive(root: Path, config: Config, *, order: random.Random | None = None, **jobs: float) -> Controller:
    """A whole run without a crash."""
    layout = RunLayout(root)
    scheduler = SimulatedScheduler(SimulatedJobs(layout, **jobs), order=order)
    controller = controller_of(layout, config, scheduler, Clock())
    while controller.done() is None:
        controller.tick()
        scheduler.work()
    return controller
