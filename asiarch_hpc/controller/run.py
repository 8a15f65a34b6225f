"""Starting and resuming a run: its record, its lease, its state, its scheduler."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from asiarch_hpc import __version__
from asiarch_hpc.config import Config, carried_out_by, differences, from_dict, to_dict
from asiarch_hpc.controller.imported import refuse_imported
from asiarch_hpc.controller.loop import Controller
from asiarch_hpc.controller.noise import take_noise
from asiarch_hpc.controller.rebuild import events_of
from asiarch_hpc.controller.scheduler import JobRequest, Scheduler
from asiarch_hpc.controller.state import Event, RunState
from asiarch_hpc.errors import ConfigError, RecordError, StoreError
from asiarch_hpc.evaluation.sources import check_sources
from asiarch_hpc.store.experiments import scan
from asiarch_hpc.store.files import move_aside, read_json, store_error, write_json
from asiarch_hpc.store.journal import Journal, read_events
from asiarch_hpc.store.layout import RunLayout
from asiarch_hpc.store.lease import live_holder, take_lease
from jobs.entry import Entry

# What reading or applying a journal that was damaged or edited may raise.
_UNREADABLE = (RecordError, OSError, KeyError, TypeError, AttributeError, ValueError)
PROJECT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def open_controller(layout: RunLayout, config: Config) -> Iterator[Controller]:
    """Creates or resumes a run, and gives it free again at the end.

    Raises:
        ConfigError: the run was imported, or exists with another configuration (the message shows the difference), or
            evaluation tasks lack their data.
        LeaseError: a live controller holds the run.
        StoreError: the results tree cannot be written.
    """
    with contextlib.suppress(RecordError):  # a damaged record is restored below
        refuse_imported(layout)
    for evaluation in (config.evaluation, *(stage.evaluation for stage in config.stages.values())):
        check_sources(evaluation.tasks, evaluation.data)
    _make_folders(layout)
    lease = take_lease(layout, stale_seconds=config.limits.lease_stale_seconds)
    controller = None
    try:
        record, messages = _record(layout, config)
        take_noise(layout, config)
        state = _load(layout, config)
        scheduler = _scheduler(layout, config, record["uid"])
        controller = Controller(layout, config, scheduler, state, lease=lease, tag_prefix=record["uid"])
        start = {"host": platform.node(), "pid": os.getpid(), "scheduler": scheduler.name}
        controller.record(
            *({"event": "note", "message": message} for message in messages),
            {"event": "start", **start, "uid": record["uid"], "config": record["config"]},
        )
        controller.check_files()
        yield controller
    finally:
        if controller is not None:
            controller.close()
        else:
            lease.release()


def load_state(layout: RunLayout, config: Config) -> RunState:
    """The state as the journal tells it, without touching anything (for `status`)."""
    state = RunState(config.search)
    for event in read_events(layout.journal):
        state.apply(event)
    return state


def holder(layout: RunLayout) -> str:
    """Who drives the run now, in words; empty when nobody does."""
    epochs = layout.leases()
    return live_holder(layout, epochs[-1]) if epochs else ""


def rebuild(layout: RunLayout, config: Config) -> RunState:
    """Writes the journal anew from the tree; the old one is kept beside it, until the new one is complete."""
    state = RunState(config.search)
    events = [{**event, "time": round(time.time(), 3)} for event in events_of(scan(layout), config)]
    for event in events:
        state.apply(event)
    with contextlib.suppress(*_UNREADABLE):
        events.append(_carried(load_state(layout, config), state))
        state.apply(events[-1])
    fresh = layout.journal.with_name(".journal.rebuilt")
    fresh.unlink(missing_ok=True)
    Journal(fresh).append(*events)
    if layout.journal.exists():
        try:
            load_state(layout, config)
            os.replace(layout.journal, layout.journal.with_name("journal.jsonl.before-rebuild"))
        except _UNREADABLE:
            move_aside(layout.journal)
    os.replace(fresh, layout.journal)
    return state


def _carried(old: RunState, new: RunState) -> Event:
    """Costs that the former journal knew of and the tree does not show: of lost proposals, of servers."""
    return {
        "event": "carried",
        "tokens": max(0, old.tokens - new.tokens),
        "gpu_seconds": max(0.0, old.gpu_seconds - new.gpu_seconds),
        "time": round(time.time(), 3),
    }


def code_version() -> str:
    """Version and commit of this code; a mark when files differ from the commit."""
    git = ["git", "-C", str(PROJECT)]
    with contextlib.suppress(OSError):
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        if commit.returncode == 0:
            changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
            return f"{__version__}+{commit.stdout.strip()}{'-changed' if changed.stdout.strip() else ''}"
    return __version__


def _make_folders(layout: RunLayout) -> None:
    try:
        for folder in (layout.inbox, layout.pool, layout.experiments, layout.jobs):
            folder.mkdir(parents=True, exist_ok=True)
        if not os.access(layout.root, os.R_OK | os.W_OK | os.X_OK):
            raise StoreError(13, f"{layout.root}: it cannot be read and written; check its owner and permissions")
    except OSError as error:
        raise (error if isinstance(error, StoreError) else store_error(error, layout.root)) from error


def _record(layout: RunLayout, config: Config) -> tuple[dict[str, Any], list[str]]:
    """Reads `run.json`, or writes it for a new run; with what to tell about it.

    Raises:
        ConfigError: another configuration than the run's.
        RecordError: the file is damaged, and the journal does not say what it held.
    """
    wanted, messages = to_dict(config), []
    record: dict[str, Any] = {}
    if layout.record.exists():
        try:
            record = _read_record(layout)
        except RecordError as error:
            record = _record_of_journal(layout, error)
            messages = [f"{error}; moved aside as {move_aside(layout.record).name}, and written anew from the journal"]
        if any(layout.all_experiments()):
            _refuse_changes(layout, record["config"], wanted)
    if not record:
        record = {
            "uid": uuid.uuid4().hex[:8],
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "code": code_version(),
            "python": platform.python_version(),
            "packages": {name: _installed(name) for name in ("torch", "lm-eval", "submitit", "numpy")},
            "schema_version": 1,
        }
    if record.get("config") != wanted or messages:
        record = {**record, "config": wanted}
        write_json(layout.record, record)
    return record, messages


def read_config(layout: RunLayout) -> Config:
    """The configuration of a run that exists.

    Raises:
        ConfigError: the run was imported.
        RecordError: `run.json` is damaged.
    """
    refuse_imported(layout)
    return from_dict(_read_record(layout)["config"], source=str(layout.record))


def _read_record(layout: RunLayout) -> dict[str, Any]:
    record = read_json(layout.record)
    fields = {"uid": str, "config": dict}
    if not isinstance(record, dict) or any(not isinstance(record.get(name), kind) for name, kind in fields.items()):
        raise RecordError(f"{layout.record}: expected an object with {', '.join(fields)}")
    return record


def _record_of_journal(layout: RunLayout, error: RecordError) -> dict[str, Any]:
    """What the last start of the run noted."""
    found: dict[str, Any] = {}
    with contextlib.suppress(RecordError):
        for event in read_events(layout.journal):
            if event["event"] == "start" and isinstance(event.get("config"), dict):
                found = {name: event[name] for name in ("uid", "config")}
    if not found:
        raise RecordError(
            f"{error}. The journal does not hold it either: restore the file, or start a new run"
        ) from error
    return {**found, "schema_version": 1}


def _refuse_changes(layout: RunLayout, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    lines = differences(stored, wanted)
    if changed := [line for line in lines if not carried_out_by(line.partition(":")[0])]:
        raise ConfigError(
            f"{layout.root}: this run exists with another configuration:\n  "
            + "\n  ".join(changed)
            + "\nStart it with the old values to resume it, or give the new configuration another run name "
            "(make explore RUN=name)"
        )


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _load(layout: RunLayout, config: Config) -> RunState:
    """The journal's state, unless journal or tree are damaged: then the tree's.

    The whole tree is checked at each start, so that no decision rests on a file that was edited or cut short.
    """
    try:
        state = load_state(layout, config)
    except _UNREADABLE as error:
        state = rebuild(layout, config)
        state.say(f"journal damaged ({error}); it was moved aside and the state read from the tree")
        return state
    found = scan(layout)
    stored = {experiment.record.id: experiment for experiment in found.experiments}
    changed = [
        f"{layout.experiment(identifier).score}: it differs from the journal"
        for identifier, score in state.scores.items()
        if identifier in stored and stored[identifier].score not in (None, score)
    ]
    if found.damaged or changed or not set(state.experiments) <= set(stored) or (stored and not state.experiments):
        state = rebuild(layout, config)
        for message in (*found.damaged, *changed):
            state.say(message)
    return state


def _scheduler(layout: RunLayout, config: Config, uid: str) -> Scheduler:
    def make_callable(request: JobRequest) -> Entry:
        return Entry(
            root=str(layout.root),
            job=request.name,
            work=request.arguments["work"],
            submission=request.arguments["submission"],
            function=request.entry,
            arguments=request.arguments["arguments"],
        )

    # Imported here: submitit's two back ends are not both needed, and `status` needs neither.
    from asiarch_hpc.controller.local import LocalScheduler
    from asiarch_hpc.controller.slurm import SlurmScheduler, available

    kind = config.executor.kind
    if kind == "slurm" and not available(config.executor.command_seconds):
        raise ConfigError(
            "executor.kind=slurm, but `sinfo` does not answer here; start on a login node or set it to local"
        )
    if kind == "slurm" or (kind == "auto" and available(config.executor.command_seconds)):
        stages = [stage.train for stage in config.stages.values()]
        return SlurmScheduler(uid, layout.jobs, config.executor, make_callable, stages=stages)
    return LocalScheduler(layout.jobs, config.executor, make_callable)


def fingerprint(state: RunState) -> str:
    """Hash of everything a rebuild must reproduce: designs, scores, the slots they fill, and the stages."""
    lines = [f"{slot} {s.status} {s.experiment}" for slot, s in sorted(state.slots.items())]
    lines += [f"{identifier} {score.fitness!r}" for identifier, score in sorted(state.scores.items())]
    for name, stage in sorted(state.stages.items()):
        lines += [f"{name} {d.experiment} {d.rank} {d.promoted} {d.reason}" for d in stage.decisions]
        lines += [f"{name} {identifier} {score.fitness!r}" for identifier, score in sorted(stage.scores.items())]
        lines += [f"{name} {identifier} failed" for identifier in sorted(stage.failures)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
