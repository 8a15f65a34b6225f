"""One controller at a time, without locks.

Leases are numbered files. Taking one means creating the next number with a hard link, which is exclusive on every
file system that clusters use; the holder refreshes only its own file. Whoever finds a higher number than its own
has lost the run and must stop. A lease is stale when its process is known to be dead on this machine, or when it
was not refreshed for a while by the file system's own clock (clocks of two hosts are never compared).
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asiarch_hpc.errors import LeaseError, RecordError
from asiarch_hpc.store.files import create_json, read_json, write_bytes, write_json
from asiarch_hpc.store.layout import RunLayout


def boot_id() -> str:
    """Identity of this boot of this machine; a process id means nothing on another."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def process_started(pid: int) -> str:
    """Start time of a live process in clock ticks since boot; empty when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rsplit(")", 1)[1].split()
    return "" if fields[0] in ("Z", "X") else fields[19]


@dataclass(slots=True)
class Lease:
    """A held lease; `refresh` before every tick, `release` at the end."""

    layout: RunLayout
    epoch: int
    content: dict[str, Any]

    def refresh(self) -> None:
        """Renews the lease.

        Raises:
            LeaseError: another controller has taken the run over.
        """
        if (newest := self.layout.leases()[-1:]) != [self.epoch]:
            raise LeaseError(
                f"{self.layout.root}: another controller took this run over (lease {newest}, ours was {self.epoch}); "
                "this one stops and changes nothing more"
            )
        write_json(self.layout.lease(self.epoch), self.content)

    def release(self) -> None:
        """Marks the lease as free; the next controller takes it at once."""
        with contextlib.suppress(LeaseError):
            self.content = {**self.content, "released": True}
            self.refresh()


def take_lease(layout: RunLayout, *, stale_seconds: float) -> Lease:
    """Takes the run's lease.

    Raises:
        LeaseError: a live controller holds it; the message gives host, process id and age.
    """
    layout.root.mkdir(parents=True, exist_ok=True)
    content = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": process_started(os.getpid()),
        "boot": boot_id(),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "released": False,
    }
    epochs = layout.leases()
    newest = epochs[-1] if epochs else 0
    if newest and (holder := live_holder(layout, newest, stale_seconds=stale_seconds)):
        raise LeaseError(
            f"{layout.root}: a controller already runs {holder}; stop it first, or wait: "
            f"one that died on another machine is replaced after {stale_seconds:.0f} s"
        )
    if not create_json(layout.lease(newest + 1), content):
        raise LeaseError(f"{layout.root}: another controller started at the same moment and holds the run")
    # The previous lease stays, so that a listing that misses the new file still shows that one exists.
    for old in epochs[:-1]:
        with contextlib.suppress(OSError):
            layout.lease(old).unlink()
    return Lease(layout, newest + 1, content)


def live_holder(layout: RunLayout, epoch: int, *, stale_seconds: float = 90.0) -> str:
    """Where the holder of a lease runs, in words; empty when the lease is free or stale."""
    path = layout.lease(epoch)
    try:
        held = read_json(path)
    except RecordError:
        held = {}
    if not isinstance(held, dict) or held.get("released") or not isinstance(held.get("pid"), int):
        return ""
    here = held.get("host") == socket.gethostname()
    if here and held.get("boot") != boot_id():
        return ""
    if here and (process_started(held["pid"]) or "-") != held.get("process_started"):
        return ""
    age = _age(path)
    if not here and not (age < stale_seconds):
        return ""
    job = f" in Slurm job {held['slurm_job']}" if held.get("slurm_job") else ""
    return f"on {held.get('host')} with pid {held.get('pid')}{job}, seen {age:.0f} s ago"


def _age(path: Path) -> float:
    """Seconds since the file was written, by the file system's own clock."""
    probe = path.with_name(f".clock.{os.getpid()}.tmp")
    write_bytes(probe, b"")
    now = probe.stat().st_mtime
    probe.unlink()
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return float("inf")
