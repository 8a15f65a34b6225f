"""What several test folders share: a whole run on this machine, made once, and how to start others like it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from asiarch_hpc.store.layout import RunLayout

CALM = ["executor.kind=local", "limits.tick_seconds=0.1"]


def command(results: Path, run: str, *overrides: str) -> list[str]:
    words = [sys.executable, "-m", "asiarch_hpc.cli", "explore", "--run", run, "--results", str(results)]
    return [*words, "--config", "smoke", *CALM, *overrides]


def asiarch(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asiarch_hpc.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def pools(layout: RunLayout) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted(layout.pool.glob("*.json"))}


def wait_for(condition: Any, seconds: float = 300.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def pytest_configure(config: pytest.Config) -> None:
    """Parallel workers compute with a thread each, as do the programs that they start, unless a test says otherwise.

    More threads than cores spend most of the time, up to thirty times that of the work, waiting for each other.
    """
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


class WholeFiles(LoadScopeScheduling):  # type: ignore[misc]
    """Of parallel workers each takes whole files, in their order, and one of them all that share the clusters."""

    def _split_scope(self, nodeid: str) -> str:
        folder, _, path = nodeid.partition("::")[0].rpartition("/")
        return "slurm" if folder.endswith("slurm") else f"{folder}/{path}"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeFiles | None:
    if config.option.dist != "load":  # asked for by name
        return None
    config.option.loadscopereorder = False  # which would put files of many quick tests first
    return WholeFiles(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork processes which use CUDA come first, those that use it in this process last: once that has
    looked for a GPU, no forked process can use one, and no sandbox starts. Files with slow tests come first, so that
    none is left to the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("slurm")}

    def turn(item: pytest.Item) -> int:
        if not item.get_closest_marker("gpu"):
            return 1
        return 0 if item.get_closest_marker("sandboxed") else 2

    items.sort(key=lambda item: (turn(item), item.path not in slow))
    if not Path("/dev/nvidiactl").exists():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA device on this machine"))


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="session")
def calm(results: Path, tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """A run that nothing disturbs; of parallel workers the first that needs it makes it, and each has a copy."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _undisturbed(results)
    shared = tmp_path_factory.getbasetemp().parent
    with (shared / "calm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "calm.made").exists():
            shutil.rmtree(shared / "calm", ignore_errors=True)
            _undisturbed(shared / "calm")
            (shared / "calm.made").touch()
    shutil.copytree(shared / "calm", results, dirs_exist_ok=True)
    return RunLayout.of(results, "calm")


def _undisturbed(folder: Path) -> RunLayout:
    done = subprocess.run(command(folder, "calm"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "leaderboard" in done.stdout
    assert done.stderr == ""
    return RunLayout.of(folder, "calm")
