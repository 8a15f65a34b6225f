"""slurm/dev-cluster.sh itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_clusters import SCRIPT, Cluster, wait_for

pytestmark = pytest.mark.slurm


@pytest.fixture
def single(slurm_packages: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster("--nodes", "1", "--gpus", "1", "--cpus", "3", "--set", "MinJobAge=20")
    monkeypatch.setenv("SLURM_CONF", cluster.conf)
    yield cluster
    cluster.remove()


def test_it_starts_once_mends_itself_and_stops(single: Cluster) -> None:
    assert single.ask("status")[0] == 3
    assert single.ask("stop")[0] == 0

    single.start()
    status, exports, _ = single.ask("env")
    assert (status, exports) == (0, f"export SLURM_CONF={single.conf}\n")
    assert "already running" in single.start()
    described = subprocess.run(["scontrol", "show", "node", "n1"], capture_output=True, text=True, check=True).stdout
    assert "CPUTot=3" in described
    assert "Gres=gpu:1" in described
    configured = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=True).stdout
    assert "MinJobAge               = 20 sec" in configured

    daemons = {name: single.pid(name) for name in ("munged", "slurmctld", "n1")}
    single.kill("slurmctld")
    wait_for(lambda: "slurmctld  not running" in single.ask("status")[1], 30, "its death is seen")
    assert "starting again: slurmctld" in single.start()
    assert single.pid("munged") == daemons["munged"]

    # The number of a daemon that died may belong to somebody else by now.
    (single.folder / "run" / "n1.pid").rename(single.folder / "n1.pid")
    (single.folder / "run" / "n1.pid").write_text(str(os.getpid()))
    assert "n1         not running" in single.ask("status")[1]
    single.ask("stop")
    (single.folder / "n1.pid").rename(single.folder / "run" / "n1.pid")
    status, text, _ = single.ask("status")
    assert status == 1
    assert f"n1         running, process {daemons['n1']}" in text
    assert single.ask("stop")[0] == 0
    assert single.ask("status")[0] == 3
    assert single.ask("env")[0] == 1


def test_jobs_end_with_the_cluster(single: Cluster, tmp_path: Path) -> None:
    single.start()
    job = f"echo $$ > {tmp_path}/pid; trap '' TERM; sleep 600 & wait; sleep 600"
    subprocess.run(["sbatch", "-o", "/dev/null", "--wrap", job], check=True, capture_output=True)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 60, "the job runs")
    process = Path("/proc", (tmp_path / "pid").read_text().strip(), "cmdline")
    assert process.read_bytes()
    single.ask("stop")
    wait_for(lambda: not (process.exists() and process.read_bytes()), 30, "the job ends")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("start", "--nodes", "none"), "--nodes none: expected a number from 1 to 99"),
        (("start", "--set", "MinJobAge"), "--set MinJobAge: expected KEY=VALUE"),
        (("start", "--colour"), "unknown option --colour"),
        (("start",), "has other contents"),
        ((), "Usage:"),
    ],
)
def test_mistakes_are_answered(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "thesis.txt").touch()
    folder = ("--dir", str(tmp_path)) if words else ()
    done = subprocess.run([SCRIPT, *words, *folder], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert (tmp_path / "thesis.txt").exists()
