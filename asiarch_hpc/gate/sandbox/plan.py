"""What a confined process gets: surroundings and limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asiarch_hpc.gate.sandbox.view import View


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The confinement of one process and all that it starts. `home` is its HOME and TMPDIR."""

    rung: str
    view: View
    home: Path
    memory_bytes: int
    timeout_s: float | None = None
    threads: int = 1
    gpu: bool = False
    network: bool = False
    processes: int = 64
    file_bytes: int = 1 << 30
    disk_bytes: int = 1 << 32
    files: int = 20_000
