"""Planted blocks moved into real designs: random unit trees, built into the backbone."""

from __future__ import annotations

import ast
import dataclasses
import functools
import random
import re
from pathlib import Path
from typing import Any

from torch import nn

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.library import library
from asiarch_hpc.designs.tree import random_tree
from asiarch_hpc.records import GateReport
from asiarch_hpc.training.backbone import build_model, count_parameters
from tests.gate.toys import CONFIG, Plant, run_check

SCALE = ScaleConfig(dim=32, depth=2, heads=2)
# Random trees without norms are at the edge of diverging: small steps, so that no sound plant tips one over.
_GENTLE = dataclasses.replace(CONFIG, learn_rate=1e-3, learn_drop=0.0)
_HEIGHT = 5  # levels of a random tree
# Units whose output is [batch, length, the width that they are given].
_PLACES = frozenset({"block", "stack", "mixer", "combinator", "ffn", "memory", "convolution", "gate"})
_GRAFTED = """
class Grafted(Unit):
    def setup(self, inner, **options):
        self.inner = self.build(inner, self.dim, self.heads, **options)
        self.planted = Planted(self.dim, self.heads, self.layer_idx, self.device, self.dtype)

    def forward(self, X, **Z):
        X, Z = self.inner(X, **Z)
        return self.planted(X, **Z)


"""


@functools.cache
def tree_source(seed: int) -> str:
    return compose(random_tree(random.Random(seed), library(), name=f"tree_{seed}", max_height=_HEIGHT))


def places(source: str) -> int:
    """How many units of a composed design a plant can follow."""
    return len(_units(source))


def transplant(source: str, plant: Plant, place: int) -> str:
    """A composed design in which the plant, a residual block of its own, follows one unit's output.

    The text of that unit's recipe is wrapped by a recipe that holds both; the plant's class is put before `Block`.
    """
    call = _units(source)[place]
    recipe = ast.get_source_segment(source, call)
    assert recipe is not None
    before = source.splitlines(keepends=True)[: call.lineno - 1]
    begin = sum(map(len, before)) + call.col_offset  # composed sources are ASCII: offsets in bytes are those in text
    wrapped = f"{source[:begin]}Grafted.of(inner={recipe}){source[begin + len(recipe) :]}"
    head, block, tail = wrapped.partition("\nclass Block(")
    return head + "\n" + re.sub(r"\bBlock\b", "Planted", plant.source) + _GRAFTED + block + tail


def accepted_codes(plant: Plant) -> set[str]:
    """The codes that name the fault in a larger design, which may leave of a look ahead a share that only the more
    sensitive check sees."""
    looks_ahead = {"causality.leak", "causality.documents"} & set(plant.codes)
    return set(plant.codes) | ({"causality.gradient"} if looks_ahead else set())


def check_tree(source: str, plant: Plant, writable: Path) -> GateReport:
    """The gate's report on a design at a small size, which counts as the baseline's."""

    def build(dim: int, depth: int, vocab: int) -> nn.Module:
        return build_model(source, vocab=vocab, scale=SCALE, dim=dim, depth=depth, seed=0)

    def size() -> tuple[int, int]:
        return SCALE.dim, SCALE.depth

    changes = {key: value for key, value in plant.changes.items() if key != "build_reference"}
    fixed: dict[str, Any] = {
        "config": _GENTLE,
        "build": build,
        "size": size,
        "target_parameters": _count(source),
    }
    return run_check(source, writable, **(fixed | changes))


def _count(source: str) -> int:
    try:
        return count_parameters(
            source, dim=SCALE.dim, depth=SCALE.depth, heads=SCALE.heads, ffn_multiple=SCALE.ffn_multiple
        )
    except Exception:  # a plant that cannot be built
        return 1


def _units(source: str) -> list[ast.Call]:
    """The recipes `Unit.of(...)` in a composed design's Block that a plant can follow, in the text's order."""
    (block,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Block"]
    calls = [
        node
        for node in ast.walk(block)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "of"
        and isinstance(node.func.value, ast.Name)
        and library()[node.func.value.id].kind in _PLACES
    ]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))
