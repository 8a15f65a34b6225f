from __future__ import annotations

import pytest

from asiarch_hpc.gate.checks.determinism import examine_determinism
from tests.gate.layers import design_specimen, found
from tests.gate.planted import SOUND
from tests.gate.toys import design

RANDOM = {
    "dropout that stays on": "y = F.dropout(x, 0.2)",
    "global random numbers": "y = x * torch.rand(L, 1)",
    "a generator without a seed": "g = torch.Generator(); g.seed(); y = x * torch.rand(L, 1, generator=g)",
    "features drawn at the first call": """
        self.features = getattr(self, "features", None)
        self.features = torch.randn(D, D) if self.features is None else self.features
        y = x @ self.features
    """,
    "Python's random numbers": "import random; y = x * random.random()",
}
DRIFT = {
    "a counter": ("self.calls += 1; y = x * (1 + 0.1 * self.calls)", "self.calls = 0", "blocks.0.calls"),
    "a counter of period two": ("self.calls += 1; y = x * (1 + self.calls % 2)", "self.calls = 0", "blocks.0.calls"),
    "a counter of period three": ("self.calls += 1; y = x * (1 + self.calls % 3)", "self.calls = 0", "blocks.0.calls"),
    "a buffer that moves": (
        "self.mean.lerp_(x.detach().mean((0, 1)), 0.1); y = x - self.mean",
        "self.register_buffer('mean', torch.zeros(dim))",
        "blocks.0.mean",
    ),
    "a state carried to the next call": (
        "y = x + self.last; self.last = x.detach()[:, -1:].mean(0, True)", "self.last = 0.0", "blocks.0.last",
    ),
    "a cache that grows": (
        "self.seen = [*self.seen, x.detach().mean()]; y = x * len(self.seen)", "self.seen = []", "blocks.0.seen",
    ),
    "a seeded generator of its own": (
        "y = x * torch.rand(D, generator=self.source)",
        "self.source = torch.Generator().manual_seed(1)",
        "blocks.0.source",
    ),
    "an iterator": (
        "y = x * (1 + next(self.count))", "import itertools; self.count = itertools.count()", "blocks.0.count"),
    "a slow counter": ("self.calls += 1; y = x * (1 + 1e-4 * self.calls)", "self.calls = 0", "blocks.0.calls"),
    "from the tenth call on": (
        "self.calls += 1; y = x * (2 if self.calls > 10 else 1)", "self.calls = 0", "blocks.0.calls",
    ),
}  # fmt: skip
SHARED = {
    "an attribute of the class": ("Block.calls = getattr(Block, 'calls', 0) + 1; y = x * Block.calls", "",
                                  "Block.calls"),
    "a slow global": ("global N; N = N + 1; y = x * (1 + 1e-4 * N)", "N = 0", "global N"),
    "a global list": ("STATE.append(1); y = x * len(STATE)", "STATE = []", "global STATE"),
    "a global number": ("global N; N = N + 1; y = x * N", "N = 0", "global N"),
    "a default argument": ("y = x * count()", "def count(seen=[]):\n    seen.append(1)\n    return len(seen)\n",
                           "global count"),
    "a global tensor": ("MEMORY.mul_(0.9).add_(x.detach().mean()); y = x + MEMORY", "MEMORY = torch.zeros(1)",
                        "global MEMORY"),
    "a global generator": ("y = x * torch.rand(D, generator=SOURCE)", "SOURCE = torch.Generator().manual_seed(1)",
                           "global SOURCE"),
}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_caught(name: str) -> None:
    (item,) = found(examine_determinism, design_specimen(design(RANDOM[name])))
    assert item.code == "determinism.eval"
    assert item.measured is None or item.measured > (item.limit or 0)


@pytest.mark.parametrize("name", DRIFT)
def test_state_that_moves_with_the_calls_is_caught_and_named(name: str) -> None:
    mix, init, where = DRIFT[name]
    (item,) = found(examine_determinism, design_specimen(design(mix, init)))
    assert item.code == "determinism.drift"
    assert where in item.message


@pytest.mark.parametrize("name", SHARED)
def test_state_outside_the_model_is_caught_and_named(name: str) -> None:
    mix, before, where = SHARED[name]
    (item,) = found(examine_determinism, design_specimen(design(mix, before=before)))
    assert item.code == "determinism.drift"
    assert where in item.message


@pytest.mark.parametrize("name", SOUND)
def test_sound_designs_pass(name: str) -> None:
    assert found(examine_determinism, design_specimen(SOUND[name])) == []


@pytest.mark.parametrize(
    ("mix", "init"),
    [
        ("self.calls += self.training; y = x * (1 + 0.1 * self.calls)", "self.calls = 0"),
        ("y = F.dropout(x, 0.2, self.training)", ""),
        ("y = self.norm2(x.mT).mT", "self.norm2 = nn.BatchNorm1d(dim)"),
        ("y = x; self.last = y.detach()", ""),
        ("self.table.setdefault(L, torch.arange(L)); y = x * self.table[L][:, None] / 100", "self.table = {}"),
        ("Block.table = getattr(Block, 'table', {}) | {L: 1}; y = x", ""),
    ],
)
def test_what_moves_in_training_or_without_effect_passes(mix: str, init: str) -> None:
    assert found(examine_determinism, design_specimen(design(mix, init))) == []


def test_state_and_random_numbers_are_both_reported() -> None:
    source = design("self.calls += 1; y = F.dropout(x, 0.2) * (1 + self.calls)", "self.calls = 0")
    codes = [item.code for item in found(examine_determinism, design_specimen(source))]
    assert codes == ["determinism.eval", "determinism.drift"]


def test_a_second_call_that_fails_is_reported() -> None:
    source = design("assert not hasattr(self, 'used'), 'used'\nself.used = True\ny = x")
    codes = [item.code for item in found(examine_determinism, design_specimen(source))]
    assert codes == ["determinism.drift", "forward.failed"]


def test_outputs_that_are_not_numbers_are_no_drift() -> None:
    assert [i.code for i in found(examine_determinism, design_specimen(design("y = x / 0")))] == ["forward.nonfinite"]
