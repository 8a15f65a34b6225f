"""Jobs as processes of this machine, through submitit's local executor, with a limit on how many run at once.

A running job is found by its command line in /proc, which holds its folder, so that a controller that was killed
and started again sees the jobs of its predecessor without having recorded anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit

from asiarch_hpc.config import ExecutorConfig, ranks_per_node
from asiarch_hpc.controller.scheduler import JobRequest, JobStatus, MakeCallable, job_environment
from asiarch_hpc.errors import SchedulerError


class LocalScheduler:
    """Implements `Scheduler` on one machine. `folder` is the run's `jobs/`."""

    name = "local"

    def __init__(self, folder: Path, config: ExecutorConfig, make_callable: MakeCallable) -> None:
        self._folder = folder.absolute()
        self._config = config
        self._make_callable = make_callable
        self._limit = config.max_jobs or max(1, (os.cpu_count() or 1) // ranks_per_node(config.train))
        self._started: dict[str, submitit.Job[Any]] = {}

    def room(self, unfinished: int) -> int:
        return max(0, self._limit - unfinished)

    def submit(self, tag: str, jobs: Sequence[JobRequest]) -> list[str]:
        return [self._submit(self._folder / tag / str(index), job) for index, job in enumerate(jobs)]

    def _submit(self, folder: Path, request: JobRequest) -> str:
        resources = request.resources
        minutes = max(1.0, resources.timeout_min)
        try:
            executor = submitit.LocalExecutor(folder)
            executor.update_parameters(
                timeout_min=minutes,
                gpus_per_node=resources.gpus,
                visible_gpus=self._least_used_gpus(resources.gpus),
                signal_delay_s=min(self._config.signal_seconds, int(minutes * 20)),
            )
            with _quiet_interrupts(), _environment(job_environment(resources.cpus)):
                job = executor.submit(self._make_callable(request))
        except OSError as error:
            raise SchedulerError(f"cannot start {request.name} on this machine: {error}") from error
        self._started[request.name] = job
        return str(job.job_id)

    def query(self) -> dict[str, JobStatus]:
        # Ended children stay zombies until they are polled; one that has just begun has no command line yet.
        self._started = {name: job for name, job in self._started.items() if not job.done()}
        found = {
            name: JobStatus(name=name, state="running", scheduler_id=str(job.job_id))
            for name, job in self._started.items()
        }
        for pid, folder in self._processes():
            name = f"{folder.parent.name}_{folder.name}"
            found[name] = JobStatus(name=name, state="running", scheduler_id=str(pid))
        return found

    def _least_used_gpus(self, count: int) -> list[int]:
        """Numbers of the GPUs for a new job: those that fewest jobs of this run hold."""
        if not count:
            return []
        numbers = _gpu_numbers() or list(range(count))
        held = Counter(number for pid in self._living() for number in _gpus_of(pid))
        return sorted(numbers, key=lambda number: held[number])[:count]

    def _living(self) -> set[int]:
        started = {int(job.job_id) for job in self._started.values() if not job.done()}
        return started | {pid for pid, _ in self._processes()}

    def cancel(self, names: Sequence[str]) -> None:
        """Asks the jobs to stop at a checkpoint (SIGTERM), and kills those that have not after ten seconds."""
        wanted = set(names)

        def left() -> list[int]:
            return [pid for pid, f in self._processes() if f"{f.parent.name}_{f.name}" in wanted]

        for pid in left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while left() and time.monotonic() < deadline:
            self.query()
            time.sleep(0.05)
        for pid in left():
            for process in [*_children(pid), pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def explain(self, names: Sequence[str]) -> dict[str, str]:
        return {}

    def _processes(self) -> Iterator[tuple[int, Path]]:
        """Process id and folder of every job of this run that lives on this machine."""
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"submitit.local._local" not in words:
                continue
            folder = Path(os.fsdecode(words[words.index(b"submitit.local._local") + 1]))
            if folder.parent.parent == self._folder:
                yield int(entry.name), folder


def _gpu_numbers() -> list[int]:
    """GPUs that this process may use, by number."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:  # the driver counts from 0 what is there; a container's device files keep the machine's numbers
        return list(range(len(list(Path("/dev").glob("nvidia[0-9]*")))))
    return [int(word) for word in named.split(",") if word.isdigit()]


def _gpus_of(pid: int) -> list[int]:
    """GPUs that a job's process was started with."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"CUDA_VISIBLE_DEVICES="):
                return [int(word) for word in entry.partition(b"=")[2].split(b",") if word.isdigit()]
    return []


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextlib.contextmanager
def _quiet_interrupts() -> Iterator[None]:
    """Lets a child inherit that it ignores Ctrl-C and the closing of the terminal: both are for the controller."""
    numbers = (signal.SIGINT, signal.SIGHUP)
    previous = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
