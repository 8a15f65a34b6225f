"""A job that tells that it runs, and ends when it is told to or after a while."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Payload:
    folder: str
    name: str
    seconds: float

    def __call__(self) -> None:
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
        words = (os.getpid(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES"))
        Path(self.folder, f"{self.name}.started").write_text(" ".join(map(str, words)))
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline and not stopped:
            time.sleep(0.02)
        Path(self.folder, f"{self.name}.{'stopped' if stopped else 'ended'}").touch()
