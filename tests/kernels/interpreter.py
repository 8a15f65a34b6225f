"""Runs a file of tests by Triton's interpreter, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def run_interpreted(name: str) -> None:
    """In a process of its own: the interpreter has to be chosen before triton is loaded. It is for float32 only, since
    it gives garbage for bfloat16."""
    pytest.importorskip("triton")
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(HERE / name)]
    words += ["-W", "ignore::RuntimeWarning"]  # it computes with NumPy, which warns where a GPU gives inf and nan
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=HERE.parent.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
