"""How closely an operation must agree with its reference; a device for the timer where there is none."""

from __future__ import annotations

import pytest
import torch

# Relative error of a tensor, in the Euclidean norm, against the reference computed in float64.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.bfloat16: 1e-2,  # the output is rounded to eight bits
}
# Calls that the device of `cuda` has run.
CALLS = [0]


class Event:
    """Of a device on which every call takes a millisecond."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0

    def record(self) -> None:
        self.at = CALLS[0]

    def elapsed_time(self, end: Event) -> float:
        return float(end.at - self.at)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the timer asks of a device."""
    for name, value in {"synchronize": 0, "reset_peak_memory_stats": 0, "_sleep": 0, "memory_allocated": 2**29}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, found=value: found)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**30)
    monkeypatch.setattr(torch.cuda, "Event", Event)
