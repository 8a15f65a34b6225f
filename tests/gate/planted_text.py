"""Texts that are refused before anything of them runs, each with its code."""

from __future__ import annotations

from tests.gate.toys import design

STATIC: dict[str, tuple[str, str]] = {
    "not Python": ("class Block(nn.Module:\n  pass", "static.syntax"),
    "Markdown around it": ("```python\nclass Block: pass\n```", "static.syntax"),
    "zero byte": ("x = '\0'", "static.syntax"),
    "endless nesting": ("x = " + "(" * 5000 + ")" * 5000, "static.syntax"),
    "neither form": ("class Mixer:\n    pass", "static.contract"),
    "Block without Z": (design("y = x").replace("forward(self, X, **Z)", "forward(self, X)"), "static.contract"),
    "Block without heads": (design("y = x").replace("dim, heads, layer", "dim, layer"), "static.contract"),
    "program without sizes": (
        "class DeltaNet:\n  def __init__(self, **kwargs): ...\n  def forward(self, hidden_states): ...",
        "static.contract",
    ),
    "program with another input": (
        "class DeltaNet:\n  def __init__(self, hidden_size=8, num_heads=2, layer_idx=0, **kwargs): ...\n"
        "  def forward(self, x): ...",
        "static.contract",
    ),
    "imports os": (design("y = x", before="import os"), "static.import"),
    "imports within a function": (design("from subprocess import run; y = x"), "static.import"),
    "relative import": (design("y = x", before="from . import sibling"), "static.import"),
    "a package that is not there": (design("y = x", before="import scipy.linalg"), "static.import"),
    "downloads": (design("y = x", before="from torch.hub import load"), "static.import"),
    "another module's import": (design("y = torch.os.getpid() * x"), "static.import"),
    "reads a file": (design("y = x * len(open('/etc/passwd').read())"), "static.call"),
    "generated code": (design("y = eval('x')"), "static.call"),
    "loads weights": (design("y = x + torch.load('weights.pt')"), "static.call"),
    "climbs out": (design("y = x * len(F.relu.__globals__)"), "static.escape"),
    "replaces a function": (design("y = x", before="F.cross_entropy = lambda *a, **k: 0"), "static.patch"),
    "replaces a method": (design("nn.Linear.forward = None; y = x"), "static.patch"),
    "replaces by name": (design("y = x", before="setattr(torch, 'isfinite', torch.ones_like)"), "static.patch"),
    "changes a setting": (design("y = x", before="torch.backends.mkldnn.enabled = False"), "static.patch"),
}
