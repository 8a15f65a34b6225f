from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from asiarch_hpc.config import GateConfig
from asiarch_hpc.gate.causality import examine_causality, probe_positions
from asiarch_hpc.records import Finding


class Function(nn.Module):
    """A one-hot embedding of the ids, changed by a function; logits [batch, length, 16]."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        return self.change(nn.functional.one_hot(ids, 16).float()), None


def findings(change: Callable[[Tensor], Tensor], seed: int = 0) -> tuple[list[Finding], list[str]]:
    failures: list[str] = []
    steps = examine_causality(
        lambda: Function(change),
        vocab=16,
        config=GateConfig(),
        seed=seed,
        on_failure=lambda code, case, message: failures.append(code),
        describe=repr,
    )
    return [step for step in steps if isinstance(step, Finding)], failures


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 129), st.integers(1, 129), st.integers(0, 1000))
def test_any_single_look_ahead_across_a_probed_position_is_caught(target: int, ahead: int, seed: int) -> None:
    source = min(129, target + ahead)
    probed = probe_positions(130, GateConfig().causality_positions, random.Random(seed))

    def change(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, target] = y[:, target] + x[:, source]
        return y

    found, failures = findings(change, seed)
    assert failures == []
    assert bool(found) == any(target <= after < source for after in probed)


@settings(deadline=None, max_examples=50)
@given(st.integers(20, 600), st.integers(1, 12), st.integers(0, 100))
def test_positions_lie_at_chunk_borders(length: int, count: int, seed: int) -> None:
    positions = probe_positions(length, count, random.Random(seed))
    assert positions == sorted(set(positions))
    assert len(positions) == min(count, length - 1)
    assert positions[0] >= 0
    assert positions[-1] <= length - 2
    largest = max(border for border in (16, 32, 64, 128, 256, 512) if border < length)
    assert largest - 1 in positions
    assert probe_positions(length, count, random.Random(seed)) == positions


def test_not_a_number_because_of_a_later_token_is_a_leak() -> None:
    def change(x: Tensor) -> Tensor:
        y = x.clone()
        if not bool(x[0, -1, first]):
            y[:, 3] = float("nan")
        return y

    first = int(torch.randint(16, (2, 130), generator=torch.Generator().manual_seed(0))[0, -1])
    found, failures = findings(change)
    assert [item.code for item in found] == ["causality.leak"]
    assert found[0].measured is None
    assert failures == []


def test_outputs_that_are_never_finite_are_not_called_a_leak() -> None:
    found, failures = findings(lambda x: x / 0)
    assert found == []
    assert failures == ["forward.nonfinite", "forward.nonfinite"]


@pytest.mark.parametrize(("error", "caught"), [(1e-6, False), (1e-2, True)])
def test_the_tolerance_is_relative_to_the_outputs(error: float, caught: bool) -> None:
    for scale in (1e-6, 1.0, 1e6):
        found, _ = findings(lambda x, scale=scale: scale * (x + error * x.roll(-1, 1)))
        assert bool(found) is caught


def test_the_finding_names_the_borders_that_leak() -> None:
    def change(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 63] = x[:, 64]
        return y

    (found,), _ = findings(change)
    assert "t = [63]" in found.message
    assert "changed output is at 63" in found.message
    assert "borders" in found.hint
