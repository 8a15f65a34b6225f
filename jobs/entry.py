"""What runs on a node: claim the attempt, run the job's function, leave one message in the inbox as the last act.

A result is fenced by its attempt, `<submission>.<restart>`: Slurm may requeue a job whose first process still lives
on a lost node, and a controller may resubmit a job that it believes dead. Whoever is not the newest attempt stops.
"""

from __future__ import annotations

import importlib
import mmap
import os
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from asiarch_hpc.errors import (
    AgentError,
    AsiarchError,
    ConfigError,
    CorpusError,
    DesignError,
    EvaluationError,
    NoServerError,
    SandboxError,
    StoppedError,
    StoreError,
    TrainingError,
)
from asiarch_hpc.records import Json
from asiarch_hpc.store.files import store_error, write_json
from asiarch_hpc.store.layout import RunLayout

# The user must act before any job of the run can succeed.
FATAL = (ConfigError, CorpusError, SandboxError, StoreError)
# The design or its author is at fault; the same job would fail again.
DESIGN_FAULT = (DesignError, TrainingError, EvaluationError, AgentError)


class SupersededError(AsiarchError):
    """A newer attempt of the same work exists; this one must leave no trace."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution of one piece of work; `rank` numbers the tasks of a job that has several."""

    layout: RunLayout
    job: str
    work: str
    submission: int
    restart: int
    stop: mmap.mmap
    rank: int = 0

    @property
    def token(self) -> str:
        return f"{self.submission:03d}.{self.restart:03d}"

    def claim(self) -> None:
        """Registers the attempt.

        Raises:
            SupersededError: the same or a newer attempt has already started.
        """
        folder = self.layout.attempts(self.work)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.close(os.open(folder / self.token, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except (FileExistsError, NotADirectoryError) as error:
            raise SupersededError(
                f"{self.job}: attempt {self.token} of {self.work} runs already, or it has its result"
            ) from error
        except OSError as error:
            raise store_error(error, folder) from error
        self.check_current()

    def check_current(self) -> None:
        """Raises SupersededError unless this is the newest attempt."""
        folder = self.layout.attempts(self.work)
        try:
            newest = max(os.listdir(folder), default="")
        except (FileNotFoundError, NotADirectoryError):
            newest = "a result that was accepted"
        if newest != self.token:
            raise SupersededError(f"{self.job}: attempt {self.token} of {self.work} was replaced by {newest}")

    def should_stop(self) -> bool:
        """Whether the job was told to end soon; true in forked children too."""
        return self.stop[0] != 0


@dataclass(frozen=True, slots=True)
class Entry:
    """The callable that submitit pickles."""

    root: str
    job: str
    work: str
    submission: int
    function: str
    arguments: Json

    def __call__(self) -> None:
        started = time.monotonic()
        restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        layout, stop = RunLayout(Path(self.root)), mmap.mmap(-1, 1)
        rank = int(os.environ["SLURM_PROCID"]) if under_srun() else 0
        attempt = Attempt(layout, self.job, self.work, self.submission, restart, stop, rank)
        _listen(attempt.stop)
        if rank > 0:
            self._assist(attempt)
            return
        message: Json
        try:
            attempt.claim()
            message = {"status": "ok", "payload": self._load()(attempt, self.arguments)}
            attempt.check_current()
        except SupersededError as error:
            print(f"stopped: {error}", flush=True)
            _end_tasks()
            return
        except StoppedError as error:
            if _requeue(attempt):
                return
            message = _interruption(error)
        except NoServerError as error:
            message = _failure("away", error)
        except FATAL as error:
            message = _failure("fatal", error)
        except DESIGN_FAULT as error:
            message = _failure("failed", error)
        except Exception as error:  # a defect of ours or of the machine: reported whole, tried again
            message = _failure("error", error)
            if attempt.should_stop():  # Slurm's SIGTERM reaches all of a job's processes, and ends sandboxes at once
                message = _interruption(error)
        message |= {
            "job": self.job,
            "work": self.work,
            "submission": self.submission,
            "restart": restart,
            "host": socket.gethostname(),
            "seconds": round(time.monotonic() - started, 3),
        }
        write_json(attempt.layout.message(self.job, restart), message)
        if message["status"] != "ok":
            _end_tasks()

    def _assist(self, attempt: Attempt) -> None:
        """A further task of a job: its first task claims the attempt, and says what became of it."""
        try:
            self._load()(attempt, self.arguments)
        except AsiarchError as error:
            print(f"rank {attempt.rank}: {error}", flush=True)

    def _load(self) -> Callable[[Attempt, Json], Json]:
        module, _, name = self.function.partition(":")
        function: Callable[[Attempt, Json], Json] = getattr(importlib.import_module(module), name)
        return function


def under_srun() -> bool:
    """Whether this process is one of several tasks that srun started for this job."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and int(os.environ.get("SLURM_NTASKS") or 1) > 1


def _end_tasks() -> None:
    """Lets srun end the job's other tasks, which may still wait for this one: it does so when a task fails."""
    if under_srun():
        raise SystemExit(1)


def _interruption(error: Exception) -> Json:
    return {"status": "interrupted", "message": str(error), "tokens": getattr(error, "tokens", 0)}


def _failure(status: str, error: Exception) -> Json:
    traceback.print_exc()
    return {
        "status": status,
        "stage": getattr(error, "stage", "job"),
        "cause": getattr(error, "cause", type(error).__name__),
        "message": str(error)[:4000],
        "tokens": getattr(error, "tokens", 0),
        "traceback": "" if isinstance(error, AsiarchError) else traceback.format_exc()[-4000:],
    }


def _listen(stop: mmap.mmap) -> None:
    """Turns the warning signals into a flag that is read at step boundaries.

    submitit's own handlers would checkpoint in the middle of a step, and count every preemption of a job of at
    most ten minutes as a time-out.
    """

    def told_to_stop(number: int, frame: FrameType | None) -> None:
        stop[0] = number

    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, told_to_stop)


def _requeue(attempt: Attempt) -> bool:
    """After the time-limit warning, puts the Slurm job back into the queue; it keeps its id and resumes."""
    # By its place in the array: the array's last task has the array's own id, which stands for all tasks.
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if not job or attempt.stop[0] != signal.SIGUSR2:
        return False
    answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    print(f"scontrol requeue {job}: {answer.returncode} {answer.stderr.strip()}", flush=True)
    return answer.returncode == 0
