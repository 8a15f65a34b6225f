"""Which device a job's children use, found out without touching CUDA in the job's own process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

from asiarch_hpc.gate.sandbox import run_isolated
from asiarch_hpc.training.engine import choose_device


@functools.cache
def uses_gpu(setting: str, rung: str) -> bool:
    """Whether the `device` setting means a GPU on this machine."""
    return choose_device(setting, has_cuda=functools.partial(_cuda_in_a_child, rung)).type == "cuda"


def _cuda_in_a_child(rung: str) -> bool:
    """Whether a confined child can use a GPU. This process must not look: it forks others that use CUDA."""
    if torch.version.cuda is None and torch.version.hip is None:
        return False
    with tempfile.TemporaryDirectory(prefix="asiarch-look-") as scratch:
        answer = run_isolated(
            torch.cuda.is_available, timeout_s=120.0, memory_gb=4.0, writable=[Path(scratch)], rung=rung, gpu=True
        )
    if not answer.ok:
        raise RuntimeError(f"looking for a GPU: {answer.cause}: {answer.error}")
    return answer.result is True
