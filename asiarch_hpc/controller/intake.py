"""From messages in the inbox to events. A message is believed only from the newest attempt of open work."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asiarch_hpc.controller.state import Busy, Event, RunState
from asiarch_hpc.errors import RecordError
from asiarch_hpc.records import Evaluation, GateReport, from_json
from asiarch_hpc.store.files import move_aside, read_json, store_error
from asiarch_hpc.store.layout import RunLayout


@dataclass(frozen=True, slots=True)
class Intake:
    """What one message means. `event` is None for a result that no longer counts; `fatal` stops the run."""

    path: Path
    event: Event | None
    key: str = ""
    job: str = ""
    fatal: str = ""


def read_inbox(layout: RunLayout, state: RunState) -> Iterator[Intake]:
    """Reads new messages in name order; `settle` each after its event is in the journal."""
    try:
        names = sorted(name for name in os.listdir(layout.inbox) if name.endswith(".json") and name[0] != ".")
    except FileNotFoundError:
        return
    except OSError as error:
        raise store_error(error, layout.inbox) from error
    for name in names:
        path = layout.inbox / name
        try:
            message = read_json(path)
            yield _intake(layout, state, path, message)
        except (RecordError, KeyError, TypeError) as error:
            reason = str(error) if isinstance(error, RecordError) else f"{path}: no message of a job ({error!r})"
            text = f"{reason}; moved aside as {move_aside(path).name}"
            yield Intake(path, {"event": "moved_aside", "message": text})


def settle(layout: RunLayout, intake: Intake) -> None:
    """Removes a message, and the claims of work that has its result: later attempts find nothing to do."""
    with contextlib.suppress(FileNotFoundError):
        intake.path.unlink()
    if intake.key:
        shutil.rmtree(layout.attempts(intake.key), ignore_errors=True)


def newest_claim(layout: RunLayout, key: str) -> str:
    """Token `<submission>.<restart>` of the newest attempt that has started; empty if none has."""
    try:
        return max(os.listdir(layout.attempts(key)), default="")
    except FileNotFoundError:
        return ""


def _intake(layout: RunLayout, state: RunState, path: Path, message: dict[str, Any]) -> Intake:
    key, job = message["work"], message["job"]
    busy = state.busy.get(key)
    token = f"{message['submission']:03d}.{message['restart']:03d}"
    if busy is None or busy.job != job:
        return Intake(path, None, key="" if busy else key, job=job)
    if newest_claim(layout, key) != token:
        return Intake(path, None, job=job)
    status = message["status"]
    if status == "interrupted":
        return Intake(path, {"event": "interrupted", "key": key}, job=job)
    if status == "ok":
        return Intake(path, _result(busy, message), key=key, job=job)
    text = f"{message['message']}" + (f"\n{message['traceback']}" if message.get("traceback") else "")
    if status == "failed":
        return Intake(path, failed(busy, message["cause"], text, stage=message["stage"]), key=key, job=job)
    detail = f"{message['cause']}: {message['message']}"
    lost = {"event": "lost", "key": key, "interrupted": status == "fatal", "detail": detail}
    return Intake(path, lost, job=job, fatal=text if status == "fatal" else "")


def failed(busy: Busy, cause: str, message: str, *, stage: str, event: str = "failed") -> Event:
    """The event of work that must not be tried again."""
    place = {name: busy.work[name] for name in ("slot", "attempt", "experiment", "trial")}
    return {"event": event, "key": busy.key, "stage": stage, "cause": cause, "message": message[:4000], **place}


def _result(busy: Busy, message: dict[str, Any]) -> Event:
    payload = message["payload"]
    if busy.kind == "train":
        from_json(Evaluation, payload["evaluation"], source="message")
        return {
            "event": "trained",
            "key": busy.key,
            "experiment": busy.work["experiment"],
            "trial": busy.work["trial"],
            "evaluation": payload["evaluation"],
            "seconds": message["seconds"],
        }
    slots = {"slot": busy.work["slot"], "attempt": busy.work["attempt"]}
    if payload["duplicate"]:
        return {"event": "proposed", "key": busy.key, "duplicate": True, **slots}
    from_json(GateReport, payload["gate"], source="message")
    fields = {name: payload[name] for name in ("id", "name", "role", "form", "gate")}
    return {"event": "proposed", "key": busy.key, "duplicate": False, **fields, **slots}
