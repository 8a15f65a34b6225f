"""Blocks that replace what the checks and the trainer use, by ways that no text shows."""

from __future__ import annotations

from tests.gate.toys import Plant

TAMPERED = ("sandbox.tampered",)

TAMPERING = {
    "a function replaced through its module's dictionary": Plant(
        "F.__dict__.update(cross_entropy=lambda *a, **k: x.sum() * 0); y = x", TAMPERED
    ),
    "a method replaced through a second name": Plant(
        "kind = torch.Tensor; kind.isfinite = lambda self: self == self; y = x", TAMPERED
    ),
    "a method replaced through an instance": Plant(
        "kind = type(self.into); kind.forward = lambda self, v: v @ self.weight.T + self.bias; y = x", TAMPERED
    ),
}
