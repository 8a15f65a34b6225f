"""What the loop asks of a scheduler, and the choice between Slurm and the local machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from asiarch_hpc.config import ResourceConfig
from asiarch_hpc.records import JobKind, Json

State = Literal["queued", "running", "ended"]


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """One job to submit. `entry` names the function that it runs, as in `jobs.train:run`."""

    name: str
    kind: JobKind
    entry: str
    arguments: Json
    resources: ResourceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    """What the scheduler says about a job. `restarts` counts requeues; `detail` is the scheduler's own word."""

    name: str
    state: State
    scheduler_id: str
    restarts: int = 0
    detail: str = ""


# Turns a request into the callable that submitit pickles; it is what runs on the node.
MakeCallable = Callable[[JobRequest], Callable[[], None]]


def job_environment(cpus: int) -> dict[str, str]:
    """Variables that every job's process starts with.

    glibc otherwise gives freed tensors back to the kernel and takes them again page by page, a third of the time of
    small trainings.
    """
    return {
        "OMP_NUM_THREADS": str(cpus),
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        "MALLOC_TOP_PAD_": str(2**26),
    }


class Scheduler(Protocol):
    """Contract of every executor; `tests/controller/scheduler_contract.py` holds the tests of it."""

    name: str

    def submit(self, tag: str, jobs: Sequence[JobRequest]) -> list[str]:
        """Submits jobs together; job i must be named `<tag>_<i>`. Returns the scheduler's ids in order.

        A tag is used once for ever, so that a submission whose answer was lost can be found again by name.

        Raises:
            SchedulerError: refused, unreachable, or an answer that is not understood (it may have worked:
                look for the names in `query`).
        """

    def query(self) -> dict[str, JobStatus]:
        """All jobs of the run that the scheduler knows, by name, with one call to it.

        A job that ended long ago, or never arrived, is absent.

        Raises:
            SchedulerError: the scheduler cannot be reached; nothing follows about any job.
        """

    def cancel(self, names: Sequence[str]) -> None:
        """Ends jobs; unknown names are ignored."""

    def explain(self, names: Sequence[str]) -> dict[str, str]:
        """Why ended jobs ended, where the scheduler keeps accounts; empty elsewhere."""

    def room(self, unfinished: int) -> int:
        """How many more jobs may be submitted while `unfinished` ones of this run exist."""
