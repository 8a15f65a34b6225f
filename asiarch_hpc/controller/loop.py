"""The loop: one idempotent tick, repeated. Kill it anywhere and start it again.

Every decision is written to the journal before it is carried out, and every job has a name that is used once, so
that a later controller finds out from the scheduler what its predecessor did not live to record.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from asiarch_hpc.config import Config, ResourceConfig, at_stage
from asiarch_hpc.controller import conclusions, intake, job_files, services, stages, works
from asiarch_hpc.controller.scheduler import JobRequest, JobStatus, Scheduler
from asiarch_hpc.controller.state import Busy, Event, RunState, WorkSpec
from asiarch_hpc.controller.trials import all_baselines
from asiarch_hpc.errors import AsiarchError, SchedulerError, StoreError, TrainingError
from asiarch_hpc.store.files import write_bytes, write_json
from asiarch_hpc.store.journal import Journal
from asiarch_hpc.store.layout import RunLayout
from asiarch_hpc.store.lease import Lease

FAREWELL_SECONDS = 5.0  # a local job needs a moment to end after its result


class FatalJobError(AsiarchError):
    """A job found something that only the user can put right."""


class Controller:
    """Drives one run. `clock` gives seconds since the epoch; `tag_prefix` is unique to the run."""

    def __init__(
        self,
        layout: RunLayout,
        config: Config,
        scheduler: Scheduler,
        state: RunState,
        *,
        lease: Lease,
        tag_prefix: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.layout = layout
        self.config = config
        self.state = state
        self.trouble = ""  # what the scheduler last complained about
        self.known: dict[str, JobStatus] = {}  # the scheduler's last answer
        self._scheduler = scheduler
        self._local = scheduler.name == "local"
        self._lease = lease
        self._tag_prefix = tag_prefix
        self._clock = clock
        self._journal = Journal(layout.journal)
        self._queried = self._refreshed = float("-inf")
        self._refusals = 0
        self._retry_at = float("-inf")

    def tick(self) -> None:
        """Looks at everything that changed, and does what follows from it.

        Raises:
            LeaseError: another controller took the run over.
            StoreError: the results tree cannot be written.
            FatalJobError: a job needs the user, for example a missing corpus.
            SchedulerError: submissions were refused too often in a row.
        """
        self._keep_lease()
        known = self._query()
        self._take_in()
        self._reconcile(known)
        conclusions.conclude(self.layout, self.state, self.config, self.record)
        self._hand_over()
        self._submit()

    def done(self) -> str | None:
        """Why the run is over, or None."""
        state = self.state
        for name in all_baselines(self.config):
            identifier = state.baselines.get(name)
            broken = state.experiments[identifier].failures if identifier else {}
            if state.outcomes.get(f"propose-{name}") == "failed" or broken:
                reason = next(iter(broken.values()), "") or state.recent[-1]
                raise TrainingError(
                    f"baseline {name} could not be trained, so nothing can be compared with it: {reason}; "
                    f"look into {self.layout.root}, put right what failed, and start a new run"
                )
            if identifier and not (gate := state.experiments[identifier].gate).passed:
                why = next((f"{one.code}: {one.message}" for one in gate.findings if one.severity == "reject"), "")
                raise TrainingError(
                    f"baseline {name} was rejected by the gate ({why}); a baseline has to pass, so change the scale, "
                    f"the limits in `gate` or the baselines, and start a new run; see {self._gate_file(identifier)}"
                )
        if reason := stages.broken_reference(state, self.config):
            raise TrainingError(f"{reason}; nothing there can be compared with it, look into {self.layout.root}")
        if server := services.broken_server(state):
            raise TrainingError(
                f"{server}: this language-model server cannot be kept running: {state.recent[-1]}; look into the logs "
                f"under {self.layout.jobs}, put agents.servers right and start the same command again"
            )
        idle = all(busy.kind == "serve" for busy in state.busy.values())
        explored = works.explored(state, self.config) if idle else None
        if explored and stages.all_settled(state, self.config):
            return explored
        if idle and (budget := works.gpu_seconds_spent(state, self.config, self._clock())):
            return budget
        if idle and not works.promoting(state) and (budget := works.tokens_spent(state, self.config)):
            return budget
        hours = self.config.limits.hours
        if hours > 0 and not self._clock() - state.started < hours * 3600:
            return f"limits.hours={hours:g} reached"
        return None

    def record(self, *events: Event) -> None:
        """Journals events, then applies them."""
        stamped = [{**event, "time": round(self._clock(), 3)} for event in events]
        self._journal.append(*stamped)
        for event in stamped:
            self.state.apply(event)

    def replace_state(self, state: RunState) -> None:
        """Continues from a state that was rebuilt; the journal is a new file by then."""
        self._journal = Journal(self.layout.journal)
        self.state = state
        conclusions.conclude(self.layout, self.state, self.config, self.record)

    def check_files(self) -> None:
        """Compares pool generations and stages on disk with what the state gives; called once, at the start."""
        conclusions.restore(self.layout, self.state, self.config, self.record)

    def cancel_jobs(self) -> None:
        """Ends the jobs under way; they stop at a checkpoint where they can, and go on in the next start."""
        self._scheduler.cancel([busy.job for busy in self.state.busy.values()])

    def abandon(self) -> None:
        """Ends what would go on unseen: jobs on the user's own machine, and servers anywhere; other jobs of a cluster
        end by themselves."""
        self._end_servers([services.service_name(busy) for busy in services.all_servers(self.state)])
        if self._local:
            self.cancel_jobs()

    def finish(self, reason: str) -> None:
        """Notes the end of the run, ends its servers, and removes what the last jobs left once they are gone."""
        self.record({"event": "finished", "reason": reason})
        self._end_servers([services.service_name(busy) for busy in services.all_servers(self.state)])
        if self._local:
            patience = max((server.drain_s for server in self.config.agents.servers), default=0.0)
            deadline = time.monotonic() + FAREWELL_SECONDS + patience * bool(services.all_servers(self.state))
            while (known := self._scheduler.query()) and time.monotonic() < deadline:
                time.sleep(0.05)
            job_files.clear(self.layout, self._tag_prefix, [*known, *self.state.jobs])

    def close(self) -> None:
        """Gives the run free."""
        self._lease.release()

    def _gate_file(self, identifier: str) -> Path:
        return self.layout.experiment(identifier).gate

    def _keep_lease(self) -> None:
        now = self._clock()
        if now - self._refreshed >= min(10.0, self.config.limits.lease_stale_seconds / 4):
            self._lease.refresh()
            self._refreshed = now

    def _query(self) -> dict[str, JobStatus] | None:
        """The scheduler's answer, or None when it was asked too recently or cannot be reached."""
        now = self._clock()
        pause = 0.0 if self._local else self.config.executor.query_seconds
        if now - self._queried < pause or not self.state.busy:
            return None
        self._queried = now
        try:
            known = self._scheduler.query()
        except SchedulerError as error:
            self.trouble = f"{self._scheduler.name} does not answer: {error}"
            return None
        self.trouble = ""
        self.known = known
        return known

    def _take_in(self) -> None:
        for item in intake.read_inbox(self.layout, self.state):
            if item.event is not None:
                self._keep_files(item)
                self.record({**item.event, **self._gpu_seconds(item.event)})
            if item.died:
                self._lose(self.state.busy[self.state.jobs[item.job]], item.died, item.spent)
            intake.settle(self.layout, item)
            if item.fatal:
                raise FatalJobError(item.fatal)

    def _reconcile(self, known: dict[str, JobStatus] | None) -> None:
        """Compares what was submitted with what the scheduler knows; `known` is None without a fresh answer."""
        now = self._clock()
        grace = 0.0 if self._local else self.config.executor.lost_grace_seconds
        for busy in list(self.state.busy.values()):
            status = known.get(busy.job) if known is not None else None
            if status is not None and status.state != "ended":
                busy.missing_since = None
                if not busy.confirmed:
                    self.record({"event": "submitted", "jobs": [busy.job]})
            elif known is not None and busy.missing_since is None:
                busy.missing_since = now
            if busy.missing_since is not None and now - busy.missing_since >= grace:
                self._give_back(busy, status.detail if status else "")
        if known is not None:
            job_files.clear(self.layout, self._tag_prefix, [*known, *self.state.jobs])

    def _give_back(self, busy: Busy, detail: str) -> None:
        """The scheduler does not know the job and no result came: the work is open again, or given up."""
        if not busy.confirmed and not intake.newest_claim(self.layout, busy.key):
            self.record({"event": "unsubmitted", "jobs": [busy.job]})
            return
        detail = self._scheduler.explain([busy.job]).get(busy.job, detail) or "no trace of it in the queue"
        if words := job_files.last_words(self.layout, busy.job):
            detail += f"; its log ends with: {words}"
        self._lose(busy, detail)

    def _lose(self, busy: Busy, detail: str, spent: Event | None = None) -> None:
        """A job died: its work is open again, unless too many of its jobs have died; `spent` is what it cost."""
        lost = {"event": "lost", "key": busy.key, "interrupted": busy.interrupted, "detail": detail, **(spent or {})}
        lost |= self._gpu_seconds(lost)
        if busy.interrupted or self.state.losses[busy.key] + 1 < self.config.limits.submissions:
            self.record(lost)
            return
        text = f"{self.config.limits.submissions} jobs ended without a result, the last: {detail}"
        kind, cause = ("unassessed", "no assessment") if busy.kind == "assess" else ("gave_up", "job lost")
        event = intake.failed(busy, cause, text, stage="job", event=kind)
        self._write_failure(busy, event)
        self.record({**event, **(spent or {}), **self._gpu_seconds(lost)})

    def _hand_over(self) -> None:
        """Ends servers whose successor is ready."""
        if services.all_servers(self.state):
            self._end_servers(services.servers_to_end(self.state, self.config, services.read_services(self.layout)))

    def _end_servers(self, names: list[str]) -> None:
        for name in names:
            if not self.layout.drain(name).exists():
                write_bytes(self.layout.drain(name), b"")

    def _wanted(self) -> list[WorkSpec]:
        """What to submit now, within the limits of the scheduler and of each kind; servers stand outside the former."""
        busy = Counter(busy.kind for busy in self.state.busy.values())
        jobs = sum(busy.values()) - busy["serve"]
        room, capacity = self._scheduler.room(jobs), self._scheduler.room(0)
        specs = works.wanted(self.state, self.config, capacity, self._clock())
        found: list[WorkSpec] = []
        now, known = self._clock(), services.read_services(self.layout)
        away = services.all_away(self.config, known, now)
        talking = sum(works.talks(work.kind, work.work.get("proposer")) for work in self.state.busy.values())
        for spec in specs:
            limit = self._resources(spec).max_jobs
            talk = works.talks(spec.kind, spec.proposer)
            # Trainings never wait for language models: one place at least is left to them.
            if talk and (away or talking >= max(1, capacity - 1)):
                continue
            if len(found) < room and (not limit or busy[spec.kind] < limit):
                busy[spec.kind] += 1
                talking += talk
                found.append(spec)
        return [*services.wanted_servers(self.state, self.config, known, now), *found]

    def _submit(self) -> None:
        now = self._clock()
        if now < self._retry_at:
            return
        specs = self._wanted()
        if not specs:
            return
        self._check_disk()
        for kind, group in groupby(
            sorted(specs, key=lambda spec: (spec.kind != "serve", spec.kind != "train", spec.kind)),
            key=lambda spec: spec.kind,
        ):
            chosen = list(group)
            tag = f"{self._tag_prefix}-{self._lease.epoch}-{kind}-{self.state.tags}"
            requests = [self._request(f"{tag}_{index}", spec) for index, spec in enumerate(chosen)]
            self.record({"event": "intent", "tag": tag, "works": [spec.to_json() for spec in chosen]})
            try:
                self._scheduler.submit(tag, requests)
            except SchedulerError as error:
                self._refused(error, now)
                return
            self._refusals = 0
            self.record({"event": "submitted", "jobs": [request.name for request in requests]})

    def _refused(self, error: SchedulerError, now: float) -> None:
        """Waits longer after each refusal; whether the jobs exist after all, the next query tells."""
        self._refusals += 1
        self.trouble = f"submission failed ({self._refusals} in a row): {error}"
        if self._refusals >= self.config.limits.refusals:
            raise SchedulerError(f"{self.trouble}; the run can be resumed with the same command") from error
        self._retry_at = now + min(300.0, self.config.limits.tick_seconds * 2**self._refusals)

    def _request(self, name: str, spec: WorkSpec) -> JobRequest:
        intake.reopen(self.layout, spec.key)
        claim = intake.newest_claim(self.layout, spec.key)
        submission = max(self.state.submissions[spec.key], int(claim.partition(".")[0] or 0)) + 1
        return JobRequest(
            name=name,
            kind=spec.kind,
            entry=spec.function,
            arguments={"work": spec.key, "submission": submission, "arguments": spec.arguments},
            resources=self._resources(spec),
        )

    def _resources(self, spec: WorkSpec) -> ResourceConfig:
        """What a job asks for: a training what its scale does, a server its own number of GPUs and its own time."""
        resources: ResourceConfig = getattr(at_stage(self.config, spec.scale).executor, spec.kind)
        if spec.kind != "serve":
            return resources
        server = next(s for s in self.config.agents.servers if s.name == spec.arguments["server"])
        return replace(resources, gpus=server.gpus, timeout_min=spec.arguments["minutes"])

    def _gpu_seconds(self, event: Event) -> Event:
        """What a job's end costs the run's budget of GPU seconds."""
        busy = self.state.busy.get(event.get("key", ""))
        ends = ("proposed", "trained", "assessed", "failed", "served", "lost", "interrupted")
        if busy is None or event["event"] not in ends or not (gpus := works.gpus_of(busy, self.config)):
            return {}
        seconds = event.get("seconds", self._clock() - busy.submitted)
        return {"gpu_seconds": round(seconds * gpus, 3)}

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.layout.root).free / 1e6
        if free < self.config.limits.min_free_megabytes:
            raise StoreError(
                28,
                f"{self.layout.root}: {free:.0f} MB free, at least {self.config.limits.min_free_megabytes:.0f} MB are "
                "wanted before new jobs start; free some space and start the same command again, nothing is lost",
            )

    def _keep_files(self, item: intake.Intake) -> None:
        """Keeps the end of a training's log beside its trial."""
        event = item.event
        if event is None or event["event"] not in ("trained", "failed") or not event.get("trial"):
            return
        log = self.layout.experiment(event["experiment"]).trial(event["trial"]).log
        write_bytes(log, job_files.log_text(self.layout, item.job))

    def _write_failure(self, busy: Busy, event: Event) -> None:
        if (experiment := busy.work["experiment"]) and busy.work["trial"]:
            names = ("stage", "cause", "message")
            trial = self.layout.experiment(experiment).trial(busy.work["trial"])
            write_json(trial.failure, {name: event[name] for name in names})
