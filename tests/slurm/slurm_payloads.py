"""What the test jobs do on the nodes. Each execution leaves `<name>.<restart>.json` in the folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


@dataclass(frozen=True)
class Payload:
    folder: str
    name: str
    action: str

    def __call__(self) -> None:
        kept = ("SLURM_", "SBATCH_", "CUDA_", "OMP_")
        note = {key: value for key, value in os.environ.items() if key.startswith(kept)}
        self._leave(f"{self._restart()}", {"environment": note, "pid": os.getpid()})
        getattr(self, f"_{self.action}")()

    def _quick(self) -> None:
        pass

    def _wait(self) -> None:
        """Runs until the test releases it."""
        self._until(lambda: (Path(self.folder) / "release").exists())

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _survive_node(self) -> None:
        """The first attempt would run for ever; the second ends."""
        if self._restart() == 0:
            self._until(lambda: False)

    def _stop_and_resume(self) -> None:
        """As a training does: on the warning it saves its progress and puts the job back; the next attempt ends."""
        if self._restart() > 0:
            self._leave("resumed", {"at": time.time()})
            return
        told: list[int] = []

        def listen(number: int, frame: FrameType | None) -> None:
            told.append(number)

        signal.signal(signal.SIGUSR2, listen)
        self._leave("listening", {"at": time.time()})
        self._until(lambda: bool(told))
        self._leave("warned", {"signal": told[0]})
        # Not SLURM_JOB_ID: that of the last task is the whole array's.
        task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        subprocess.run(["scontrol", "requeue", task], check=True)

    def _restart(self) -> int:
        return int(os.environ.get("SLURM_RESTART_COUNT") or 0)

    def _until(self, condition: object) -> None:
        deadline = time.monotonic() + 240
        while not condition() and time.monotonic() < deadline:  # type: ignore[operator]
            time.sleep(0.1)

    def _leave(self, word: str, note: object) -> None:
        path = Path(self.folder) / f"{self.name}.{word}.json"
        path.with_suffix(".tmp").write_text(json.dumps(note))
        path.with_suffix(".tmp").rename(path)
