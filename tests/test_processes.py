"""A process that has computed with several threads forks children that compute with several, and do not hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asiarch_hpc.processes import signal_name

COMPUTING = """
import gc, os, signal, sys, torch
from pathlib import Path
from asiarch_hpc.gate.sandbox import run_isolated
from asiarch_hpc.processes import fork

def compute():
    return float(torch.ones(1 << 22).add_(1).sum())  # so much that all threads take part

def forked():
    pid = fork()
    if pid == 0:
        signal.alarm(30)  # nobody else ends it
        torch.set_num_threads(2)
        os._exit(compute() != 1 << 23 or gc.get_freeze_count() == 0)
    return os.waitpid(pid, 0)[1]

def isolated():
    folder = Path(sys.argv[2])
    outcome = run_isolated(compute, timeout_s=30.0, memory_gb=16.0, writable=[folder], threads=2, rung="limits")
    return outcome.cause or int(outcome.result) - (1 << 23)

compute()
print({"forked": forked, "isolated": isolated}[sys.argv[1]](), torch.get_num_threads(), compute())
assert gc.get_freeze_count() == 0  # of this process
"""


@pytest.mark.parametrize("way", ["forked", "isolated"])
def test_children_of_a_process_that_has_computed(way: str, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPUTING, way, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr[-800:]
    assert ran.stdout.split() == ["0", "2", "8388608.0"]


def test_signals_without_a_name() -> None:
    assert signal_name(signal.SIGTERM) == "SIGTERM"
    assert signal_name(signal.SIGRTMIN + 6) == f"signal {signal.SIGRTMIN + 6}"
