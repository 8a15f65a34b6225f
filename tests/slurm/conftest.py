"""Real Slurm clusters for the tests of this folder, started by slurm/dev-cluster.sh."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "dev-cluster.sh"
PLAIN = ("--set", "MaxArraySize=6", "--set", "SlurmdTimeout=8")
ACCOUNTING = ("--accounting", "--preempt", "--grace", "60")

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

    def begin(self) -> None:
        self._process = self.run("start", *self._options)

    def start(self) -> None:
        process = self._process or self.run("start", *self._options)
        self._process = None
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors

    def pid(self, daemon: str) -> int:
        return int((self.folder / "run" / f"{daemon}.pid").read_text())

    def end(self, daemon: str) -> None:
        """Stops a daemon as an administrator would, and waits for its end."""
        command = Path(f"/proc/{self.pid(daemon)}/cmdline")
        os.kill(self.pid(daemon), signal.SIGTERM)
        wait_for(lambda: not (command.exists() and command.read_bytes()), 60, f"{daemon} ends")

    def run(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-x", SCRIPT, *words, "--dir", self.folder],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=open(f"/tmp/gt/trace.{words[0]}.{time.time()}", "w"),
            env={**os.environ, "PS4": "+ $EPOCHREALTIME "},
        )

    def stop(self) -> None:
        if self._process:
            self._process.communicate(timeout=400)
        self._process = self.run("stop")

    def remove(self) -> None:
        assert self._process
        self._process.communicate(timeout=120)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="session")
def slurm_packages() -> None:
    """In CI the tests must run: the script installs what is missing. Elsewhere they run where they can."""
    if os.environ.get("CI") == "true":
        return
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    commands = ("slurmctld", "slurmd", "sbatch", "munged", "slurmdbd", "mariadbd", "mariadb-install-db")
    missing = [command for command in commands if not shutil.which(command, path=path)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge slurmdbd mariadb-server")
    if os.geteuid() != 0:
        pytest.skip("making the device files of fake GPUs needs root")


@pytest.fixture(scope="session")
def clusters(slurm_packages: None) -> Iterator[dict[str, Cluster]]:
    """Both clusters, the second still starting."""
    made = {"plain": Cluster(*PLAIN), "accounting": Cluster(*ACCOUNTING)}
    try:
        made["plain"].start()
        made["accounting"].begin()
        yield made
    finally:
        for cluster in made.values():
            cluster.stop()
        for cluster in made.values():
            cluster.remove()


@pytest.fixture
def plain(clusters: dict[str, Cluster], monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("SLURM_CONF", clusters["plain"].conf)
    return clusters["plain"]


@pytest.fixture
def accounting(clusters: dict[str, Cluster], monkeypatch: pytest.MonkeyPatch) -> Cluster:
    clusters["accounting"].start()
    monkeypatch.setenv("SLURM_CONF", clusters["accounting"].conf)
    return clusters["accounting"]


@pytest.fixture(autouse=True)
def importable_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs inherit the environment, and import what they run by name."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
