"""The clusters that the tests of this folder share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_clusters import Cluster

PLAIN = ("--set", "MaxArraySize=6", "--set", "SlurmdTimeout=8")
ACCOUNTING = ("--accounting", "--preempt", "--grace", "60")


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


@pytest.fixture(scope="session")
def clusters(slurm_packages: None) -> Iterator[dict[str, Cluster]]:
    """Both clusters, the second still starting."""
    made = {"plain": Cluster(*PLAIN), "accounting": Cluster(*ACCOUNTING)}
    try:
        made["plain"].start()
        made["accounting"].begin_start()
        yield made
    finally:
        for cluster in made.values():
            cluster.begin_stop()
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
