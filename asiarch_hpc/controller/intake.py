"""From messages in the inbox to events. A message is believed only from the newest attempt of open work."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asiarch_hpc.controller.state import Busy, Event, RunState
from asiarch_hpc.errors import RecordError
from asiarch_hpc.records import Assessment, Evaluation, GateReport, from_json
from asiarch_hpc.store.files import move_aside, read_json, store_error
from asiarch_hpc.store.layout import RunLayout

WORK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MESSAGE_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class Intake:
    """What one message means. `event` is None for a result that no longer counts.

    `fatal` stops the run; `died` says why a job ended that may be tried again.
    """

    path: Path
    event: Event | None
    key: str = ""
    job: str = ""
    fatal: str = ""
    died: str = ""
    spent: Event = field(default_factory=dict)


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
            yield _intake(layout, state, path, _read_message(path))
        except (RecordError, KeyError, TypeError, ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, RecordError) else f"{path}: no message of a job ({error!r:.200})"
            text = f"{reason}; moved aside as {move_aside(path).name}"
            yield Intake(path, {"event": "moved_aside", "message": text})


def settle(layout: RunLayout, intake: Intake) -> None:
    """Removes a message, and closes work that has its result: an attempt that starts later finds nothing to do."""
    with contextlib.suppress(FileNotFoundError):
        intake.path.unlink()
    if intake.key:
        claims = layout.attempts(intake.key)
        shutil.rmtree(claims, ignore_errors=True)
        claims.touch()


def reopen(layout: RunLayout, key: str) -> None:
    """Lets attempts at work start that was closed once (its record was damaged since)."""
    if layout.attempts(key).is_file():
        layout.attempts(key).unlink()


def newest_claim(layout: RunLayout, key: str) -> str:
    """Token `<submission>.<restart>` of the newest attempt that has started; empty if none has."""
    try:
        return max(os.listdir(layout.attempts(key)), default="")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _read_message(path: Path) -> dict[str, Any]:
    """Parses a message and checks the fields that name its work; the inbox is a folder that anybody may write to.

    Raises:
        RecordError: no regular file, too large, not JSON, or fields of other types.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MESSAGE_BYTES:
        raise RecordError(f"{path}: a regular file of at most {MESSAGE_BYTES} bytes was expected")
    message = read_json(path)
    fields = {"work": str, "job": str, "submission": int, "restart": int, "status": str}
    if not isinstance(message, dict) or any(type(message.get(name)) is not kind for name, kind in fields.items()):
        raise RecordError(f"{path}: expected an object with {', '.join(fields)}")
    if not WORK_NAME.fullmatch(message["work"]):
        raise RecordError(f"{path}: {message['work']!r:.100} names no work")
    return message


def _intake(layout: RunLayout, state: RunState, path: Path, message: dict[str, Any]) -> Intake:
    key, job = message["work"], message["job"]
    busy = state.busy.get(key)
    token = f"{message['submission']:03d}.{message['restart']:03d}"
    if busy is None or busy.job != job:
        closed = key in state.outcomes and key not in state.busy
        return Intake(path, None, key=key if closed else "", job=job)
    if newest_claim(layout, key) != token:
        return Intake(path, None, job=job)
    status = message["status"]
    spent = {"seconds": message["seconds"], "tokens": message.get("tokens", 0)}
    if status == "interrupted":
        return Intake(path, {"event": "interrupted", "key": key, **spent}, job=job)
    if status == "ok":
        return Intake(path, _result(busy, message), key=key, job=job)
    text = f"{message['message']}" + (f"\n{message['traceback']}" if message.get("traceback") else "")
    if status == "failed":
        event = failed(busy, message["cause"], text, stage=message["stage"])
        return Intake(path, {**event, **spent}, key=key, job=job)
    detail = f"{message['cause']}: {message['message']}"
    if status in ("fatal", "away"):  # not the work's fault: it is open again as it was
        lost = {"event": "lost", "key": key, "interrupted": True, "detail": detail, **spent}
        return Intake(path, lost, job=job, fatal=text if status == "fatal" else "")
    return Intake(path, None, job=job, died=detail, spent=spent)


def failed(busy: Busy, cause: str, message: str, *, stage: str, event: str = "failed") -> Event:
    """The event of work that must not be tried again."""
    place = {name: busy.work.get(name) for name in ("slot", "attempt", "experiment", "trial", "scale")}
    return {"event": event, "key": busy.key, "stage": stage, "cause": cause, "message": message[:4000], **place}


def _result(busy: Busy, message: dict[str, Any]) -> Event:
    payload = message["payload"]
    spent = {"seconds": message["seconds"], "tokens": payload.get("tokens", 0)}
    if busy.kind == "serve":
        return {"event": "served", "key": busy.key, "reason": str(payload["reason"]), "seconds": message["seconds"]}
    if busy.kind == "assess":
        from_json(Assessment, payload["assessment"], source="message")
        place = {"key": busy.key, "experiment": busy.work["experiment"]}
        return {"event": "assessed", "assessment": payload["assessment"], **place, **spent}
    if busy.kind == "train":
        from_json(Evaluation, payload["evaluation"], source="message")
        return {
            "event": "trained",
            "key": busy.key,
            "experiment": busy.work["experiment"],
            "trial": busy.work["trial"],
            "scale": busy.work.get("scale"),
            "evaluation": payload["evaluation"],
            "seconds": message["seconds"],
            "tokens_per_second": payload.get("trial", {}).get("tokens_per_second"),
            "parameters": payload.get("trial", {}).get("parameters"),
        }
    slots = {"slot": busy.work["slot"], "attempt": busy.work["attempt"]}
    if payload["duplicate"]:
        return {"event": "proposed", "key": busy.key, "duplicate": True, **slots, **spent}
    from_json(GateReport, payload["gate"], source="message")
    names = ("id", "name", "role", "form", "operator", "proposer", "parents", "gate")
    fields = {name: payload[name] for name in names}
    return {"event": "proposed", "key": busy.key, "duplicate": False, **fields, **slots, **spent}
