"""What the controller knows: a fold of journal events. Applying the same events gives the same state."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from asiarch_hpc.config import SearchConfig
from asiarch_hpc.controller.stage_state import StageState
from asiarch_hpc.records import (
    Assessment,
    BaselineStats,
    Evaluation,
    Form,
    GateReport,
    JobKind,
    Json,
    Judgement,
    Operator,
    Role,
    Score,
    from_json,
)
from asiarch_hpc.search import population
from asiarch_hpc.search.population import Population, SlotState

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkSpec:
    """One piece of work: what a job does, whoever does it and however often it must be submitted.

    `slot` and `attempt` belong to proposals, `experiment` and `trial` to trainings, `scale` names the stage of a
    training beyond exploration.
    """

    key: str
    kind: JobKind
    function: str
    arguments: Json
    slot: int | None = None
    attempt: int | None = None
    experiment: str | None = None
    trial: str | None = None
    proposer: str | None = None
    scale: str | None = None
    label: str = ""

    def to_json(self) -> Json:
        """The entry of an intent: everything but how to run it."""
        names = ("key", "kind", "slot", "attempt", "experiment", "trial", "proposer", "scale", "label")
        return {name: getattr(self, name) for name in names}


@dataclass(slots=True)
class Busy:
    """A submission whose result has not been seen. `work` is its entry in the intent.

    `confirmed`: the scheduler acknowledged it; `missing_since`: when the scheduler was first seen not to know it.
    """

    key: str
    kind: JobKind
    job: str
    work: Json
    submitted: float
    confirmed: bool = False
    interrupted: bool = False
    missing_since: float | None = None


@dataclass(slots=True)
class ExperimentState:
    """The part of an experiment that decisions need."""

    id: str
    name: str
    role: Role
    form: Form
    gate: GateReport
    slot: int | None
    attempt: int | None
    operator: Operator = "mutation"
    proposer: str = ""
    parents: tuple[str, ...] = ()
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    failed_stage: str = ""
    failed_cause: str = ""
    speeds: list[float] = field(default_factory=list)
    assessed: bool = False
    judgement: Judgement | None = None


@dataclass(slots=True)
class Tally:
    """How the proposals of one proposer fared. `seconds` are those of its jobs."""

    proposals: int = 0
    admitted: int = 0
    tokens: int = 0
    seconds: float = 0.0


Outcome = Literal["ok", "failed"]


@dataclass(slots=True)
class RunState:
    """All events folded together."""

    search: SearchConfig
    tags: int = 0
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    submissions: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    busy: dict[str, Busy] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    experiments: dict[str, ExperimentState] = field(default_factory=dict)
    baselines: dict[str, str] = field(default_factory=dict)
    slots: dict[int, SlotState] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    stats: tuple[BaselineStats, ...] = ()
    generations: int = 0
    stages: dict[str, StageState] = field(default_factory=dict)
    causes: Counter[str] = field(default_factory=Counter)
    tallies: dict[str, Tally] = field(default_factory=dict)
    tokens: int = 0
    gpu_seconds: float = 0.0
    train_seconds: list[float] = field(default_factory=list)
    recent: list[str] = field(default_factory=list)
    said: int = 0
    started: float = 0.0
    latest: float = 0.0
    active_seconds: float = 0.0
    finished: str | None = None

    def apply(self, event: Event) -> None:
        """Folds one event."""
        if event["event"] != "start" and self.latest:
            self.active_seconds += max(0.0, event["time"] - self.latest)
        self.latest = event["time"]
        self.tokens += event.get("tokens") or 0
        self.gpu_seconds += event.get("gpu_seconds") or 0.0
        getattr(self, f"_on_{event['event']}")(event)

    def say(self, text: str) -> None:
        """Keeps a line for the view."""
        self.said += 1
        self.recent = [*self.recent[-19:], " ".join(text.split())]

    def _on_start(self, event: Event) -> None:
        self.started = self.started or event["time"]
        self.finished = None
        # What kept a server from running may have been put right.
        self.outcomes = {k: v for k, v in self.outcomes.items() if not (k.startswith("serve-") and v == "failed")}
        for key in [key for key in self.losses if key.startswith("serve-")]:
            del self.losses[key]

    def _on_intent(self, event: Event) -> None:
        self.tags += 1
        for index, work in enumerate(event["works"]):
            job = f"{event['tag']}_{index}"
            key = work["key"]
            self.submissions[key] += 1
            self.jobs[job] = key
            self.busy[key] = Busy(key, work["kind"], job, work, event["time"])
            if work["kind"] in ("propose", "debug") and work["slot"] is not None:
                self._begin(work["slot"], work["attempt"])

    def _on_submitted(self, event: Event) -> None:
        for job in event["jobs"]:
            if (busy := self.busy.get(self.jobs.get(job, ""))) and busy.job == job:
                busy.confirmed = True

    def _on_unsubmitted(self, event: Event) -> None:
        """The scheduler never had these jobs."""
        for job in event["jobs"]:
            self._reopen(self.jobs[job])

    def _on_interrupted(self, event: Event) -> None:
        if event["key"] in self.busy:
            self.busy[event["key"]].interrupted = True
        self.say(f"{event['key']}: stopped at a checkpoint, will go on")

    def _on_lost(self, event: Event) -> None:
        key = event["key"]
        self._reopen(key)
        if not event["interrupted"]:
            self.losses[key] += 1
            self.say(f"{key}: its job ended without a result ({event['detail'][:300]})")

    def _on_gave_up(self, event: Event) -> None:
        """Too many jobs of this work died."""
        self._count(event, admitted=False)
        self._free(event["key"])
        self.outcomes[event["key"]] = "failed"
        self._fail(event)

    def _on_failed(self, event: Event) -> None:
        """A job reported that the design is at fault."""
        self._count(event, admitted=False)
        self._free(event["key"])
        self.outcomes[event["key"]] = "failed"
        self._fail(event)

    def _fail(self, event: Event) -> None:
        self.causes[event["cause"]] += 1
        self.say(f"{event['key']}: {event['cause']}: {event['message'][:200]}")
        if event.get("scale"):
            self._stage(event["scale"]).fail(event)
        elif event.get("experiment"):
            experiment = self.experiments[event["experiment"]]
            experiment.failures[event["trial"] or event["stage"]] = f"{event['cause']}: {event['message'][:500]}"
            experiment.failed_stage, experiment.failed_cause = event["stage"], event["cause"]
            self._finish(experiment.slot, experiment.attempt, "failed", experiment.id)
        else:
            self._finish(event.get("slot"), event.get("attempt"), "failed", None)

    def _on_proposed(self, event: Event) -> None:
        """A design reached the store; the gate admitted it or not. A duplicate has no experiment."""
        self._count(event, admitted=not event["duplicate"] and bool(event["gate"]["passed"]))
        self._free(event["key"])
        self.outcomes[event["key"]] = "ok"
        slot, attempt = event["slot"], event["attempt"]
        if event["duplicate"]:
            self._finish(slot, attempt, "failed", None)
            return
        gate = from_json(GateReport, event["gate"], source="journal")
        state = ExperimentState(
            event["id"],
            event["name"],
            event["role"],
            event["form"],
            gate,
            slot,
            attempt,
            operator=event.get("operator", "mutation"),
            proposer=event.get("proposer", ""),
            parents=tuple(event.get("parents", ())),
        )
        self.experiments[state.id] = state
        if state.role == "baseline":
            self.baselines[state.name] = state.id
        if not gate.passed:
            codes = [finding.code for finding in gate.findings if finding.severity == "reject"]
            self.causes.update(f"gate: {code}" for code in codes[:1])
            self.say(f"{state.name} rejected by the gate: {', '.join(codes)}")
            self._finish(slot, attempt, "failed", state.id)
        elif slot is not None and attempt is not None:
            self._begin(slot, attempt)

    def _on_trained(self, event: Event) -> None:
        self._free(event["key"])
        self.outcomes[event["key"]] = "ok"
        if event.get("scale"):
            self._stage(event["scale"]).train(event)
            return
        evaluation = from_json(Evaluation, event["evaluation"], source="journal")
        self.experiments[event["experiment"]].evaluations[event["trial"]] = evaluation
        self.train_seconds = [*self.train_seconds[-49:], event["seconds"]]
        if event.get("tokens_per_second"):
            self.experiments[event["experiment"]].speeds.append(event["tokens_per_second"])

    def _on_assessed(self, event: Event) -> None:
        self._free(event["key"])
        self.outcomes[event["key"]] = "ok"
        experiment = self.experiments[event["experiment"]]
        experiment.assessed = True
        assessment = from_json(Assessment, event["assessment"], source="journal")
        experiment.judgement = assessment.judge

    def _on_unassessed(self, event: Event) -> None:
        """No assessment was to be had; a design that needs no grade of it goes on without."""
        self._free(event["key"])
        self.outcomes[event["key"]] = "failed"
        self.experiments[event["experiment"]].assessed = True
        self.causes[event["cause"]] += 1
        self.say(f"{event['key']}: {event['cause']}: {event['message'][:200]}")

    def _on_served(self, event: Event) -> None:
        """A language-model server ended as it should."""
        self._free(event["key"])
        self.outcomes[event["key"]] = "ok"
        self.say(f"{event['key']}: server ended ({event['reason']})")

    def _on_baselines(self, event: Event) -> None:
        stats = tuple(from_json(BaselineStats, stats, source="journal") for stats in event["stats"])
        if event.get("scale"):
            self._stage(event["scale"]).stats = stats
        else:
            self.stats = stats

    def _on_promoted(self, event: Event) -> None:
        stage = self._stage(event["scale"])
        stage.decide(event)
        self.say(f"{event['scale']}: {len(stage.promoted)} of {len(stage.decisions)} designs go on")

    def _on_scored(self, event: Event) -> None:
        score = from_json(Score, event["score"], source="journal")
        if event.get("scale"):
            self._stage(event["scale"]).scores[score.experiment] = score
            return
        self.scores[score.experiment] = score
        experiment = self.experiments[score.experiment]
        outcome: population.Outcome = "discarded" if score.discarded else "scored"
        self._finish(experiment.slot, experiment.attempt, outcome, experiment.id)
        if score.discarded:
            self.causes["discarded: leak"] += 1
        self.say(
            f"{experiment.name}: fitness {score.fitness:.3f}" + (f" ({score.discarded})" if score.discarded else "")
        )

    def _on_generation(self, event: Event) -> None:
        self.generations = event["number"] + 1

    def _on_moved_aside(self, event: Event) -> None:
        self.say(event["message"])

    def _on_carried(self, event: Event) -> None:
        """What a rebuilt tree does not show of the costs."""

    def _on_note(self, event: Event) -> None:
        self.say(event["message"])

    def _on_finished(self, event: Event) -> None:
        self.finished = event["reason"]

    def _count(self, event: Event, *, admitted: bool) -> None:
        """Books a proposal under its proposer."""
        busy = self.busy.get(event["key"])
        name = event.get("proposer") or (busy.work.get("proposer") if busy else None)
        if name is None or event.get("trial") or (busy is not None and busy.kind not in ("propose", "debug")):
            return
        tally = self.tallies.setdefault(name, Tally())
        tally.proposals += 1
        tally.admitted += admitted
        tally.tokens += event.get("tokens") or 0
        tally.seconds += event.get("seconds") or 0.0

    def _stage(self, name: str) -> StageState:
        return self.stages.setdefault(name, StageState())

    def _free(self, key: str) -> None:
        if busy := self.busy.pop(key, None):
            self.jobs.pop(busy.job, None)

    def _reopen(self, key: str) -> None:
        """The work is to be submitted again, and the slot of a proposal is open as before."""
        work = self.busy[key].work
        self._free(key)
        if work["slot"] is not None:
            self.slots[work["slot"]] = SlotState(work["slot"], work["attempt"])

    def _begin(self, slot: int, attempt: int) -> None:
        self.slots |= population.begin(self._one(slot), slot, attempt).slots

    def _finish(
        self, slot: int | None, attempt: int | None, outcome: population.Outcome, experiment: str | None
    ) -> None:
        """Ends a slot's attempt; baselines have no slot."""
        if slot is not None and attempt is not None:
            one = self._one(slot)
            self.slots |= population.finish(one, slot, attempt, outcome, experiment, self.search).slots

    def _one(self, slot: int) -> Population:
        """The population reduced to one slot: its transitions depend on nothing else, and copying all is slow."""
        return Population({slot: self.slots.get(slot, SlotState(slot))}, self.generations)
