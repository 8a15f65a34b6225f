"""Real Slurm clusters, started and stopped by slurm/dev-cluster.sh."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "dev-cluster.sh"

T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Polls until the condition holds; generous, because other work may share the machine."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)
    return found


class Cluster:
    """One cluster in a folder of its own. `start` may be called again after a daemon was killed."""

    def __init__(self, *options: str) -> None:
        # Sockets want a short path, which pytest's own folders do not promise.
        self.folder = Path(tempfile.mkdtemp(prefix="asiarch-slurm-"))
        self._options = options
        self._process: subprocess.Popen[str] | None = None

    @property
    def conf(self) -> str:
        return str(self.folder / "slurm.conf")

    def begin(self, *words: str) -> None:
        """Runs the script beside the tests; the next call waits for it."""
        assert self._process is None
        self._process = subprocess.Popen(
            [SCRIPT, *words, "--dir", self.folder],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of what was begun."""
        assert self._process is not None
        output, errors = self._process.communicate(timeout=400)
        status = self._process.returncode
        self._process = None
        return status, output, errors

    def ask(self, *words: str) -> tuple[int, str, str]:
        self.begin(*words)
        return self.finish()

    def begin_start(self) -> None:
        self.begin("start", *self._options)

    def start(self) -> str:
        """Starts the cluster, or what is missing of it. Returns what the script said."""
        if self._process is None:
            self.begin_start()
        status, _, errors = self.finish()
        assert status == 0, errors
        return errors

    def begin_stop(self) -> None:
        if self._process is not None:
            self.finish()
        self.begin("stop")

    def remove(self) -> None:
        if self._process is None:
            self.begin("stop")
        self.finish()
        shutil.rmtree(self.folder)

    def pid(self, daemon: str) -> int:
        return int((self.folder / "run" / f"{daemon}.pid").read_text())

    def kill(self, daemon: str) -> None:
        os.kill(self.pid(daemon), signal.SIGKILL)

    def end(self, daemon: str) -> None:
        """Stops a daemon as an administrator would, and waits for its end."""
        command = Path(f"/proc/{self.pid(daemon)}/cmdline")
        os.kill(self.pid(daemon), signal.SIGTERM)
        wait_for(lambda: not _text(command), 60, f"{daemon} ends")


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
