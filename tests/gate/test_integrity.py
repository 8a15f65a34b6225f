"""What is replaced in memory is found by name, and what comes anew is not."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asiarch_hpc.gate.checks import causality, subject
from asiarch_hpc.gate.checks.integrity import Integrity

Patch = Callable[[pytest.MonkeyPatch], None]
PATCHES: dict[str, Patch] = {
    "torch.nn.functional.softmax": lambda patch: patch.setattr(F, "softmax", lambda x, dim: x),
    "torch.randn": lambda patch: patch.setattr(torch, "randn", torch.rand),
    "torch.Tensor.backward": lambda patch: patch.setattr(torch.Tensor, "backward", lambda self: None),
    "torch.Tensor.isfinite": lambda patch: patch.setattr(torch.Tensor, "isfinite", lambda self: self == self, False),
    "torch.nn.Linear.forward": lambda patch: patch.setattr(nn.Linear, "forward", lambda self, x: x),
    "torch.nn.functional.cross_entropy": lambda patch: patch.setattr(
        F.cross_entropy, "__code__", (lambda *a, **k: 0).__code__
    ),
    "builtins.abs": lambda patch: patch.setattr("builtins.abs", lambda x: 0),
    "math.isfinite": lambda patch: patch.setattr("math.isfinite", lambda x: True),
    "asiarch_hpc.gate.checks.subject.largest": lambda patch: patch.setattr(subject, "largest", lambda x: 0.0),
    "asiarch_hpc.gate.checks.subject._FAILURE_HINTS": lambda patch: patch.setitem(
        subject._FAILURE_HINTS, "forward.failed", "All is well."
    ),
    "asiarch_hpc.gate.checks.causality": lambda patch: patch.setitem(
        sys.modules, causality.__name__, types.ModuleType("causality")
    ),
}


@pytest.mark.parametrize("name", PATCHES)
def test_what_is_replaced_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    integrity = Integrity()
    assert integrity.changed() == []
    with monkeypatch.context() as patch:
        PATCHES[name](patch)
        found = integrity.changed()
    assert name in found
    assert integrity.changed() == []


def test_hooks_of_all_modules_are_named() -> None:
    integrity = Integrity()
    handle = nn.modules.module.register_module_forward_hook(lambda *words: None)
    assert integrity.changed() == ["torch.nn.modules.module._global_forward_hooks"]
    handle.remove()
    assert integrity.changed() == []


def test_honest_work_changes_nothing() -> None:
    integrity = Integrity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of parts that it deprecates
        layer = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.LayerNorm(4))
        optimiser = torch.optim.AdamW(layer.parameters())
        layer(torch.randn(2, 4)).sum().backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimiser.step()
        compiled = torch.compile(lambda x: x.sin() + 1, backend="eager")
        assert compiled(torch.ones(3)).shape == (3,)
        torch.fft.rfft(torch.ones(8))
    assert integrity.changed() == []
