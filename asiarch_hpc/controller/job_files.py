"""What submitit leaves of jobs: their logs, and folders that are cleared once nobody needs them."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from asiarch_hpc.store.layout import RunLayout

LOG_BYTES = 65_536  # of a job's log that are looked at, and kept beside its trial


def log_text(layout: RunLayout, job: str) -> bytes:
    """The end of a job's log."""
    return b"".join(path.read_bytes()[-LOG_BYTES:] for path in _logs(layout, job))


def last_words(layout: RunLayout, job: str) -> str:
    """The last line that the job's log says something in."""
    lines = log_text(layout, job).decode(errors="replace").splitlines()
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def clear(layout: RunLayout, tag_prefix: str, alive: Collection[str]) -> None:
    """Removes the files of submissions of which no job is among those that live."""
    tags = {name.rpartition("_")[0] for name in alive}
    for folder in layout.jobs.glob(f"{tag_prefix}-*"):
        if folder.name.partition("+")[0] not in tags:
            shutil.rmtree(folder, ignore_errors=True)


def _logs(layout: RunLayout, job: str) -> Iterator[Path]:
    """The log files of a job; a long submission is split into `<tag>`, `<tag>+<first index>`, …"""
    tag, _, index = job.rpartition("_")
    for folder in (layout.job_folder(tag), *layout.jobs.glob(f"{tag}+*")):
        first = int(folder.name.partition("+")[2] or 0)
        yield from sorted(folder.glob(f"{int(index) - first}/*_log.*"))
