from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from asiarch_hpc.gate.checks.causality import examine_causality, probe_positions
from asiarch_hpc.records import Finding
from tests.gate.toys import CONFIG, specimen_of


class Function(nn.Module):
    """A one-hot embedding of the ids, changed by a function; logits [batch, length, vocab]."""

    def __init__(self, change: Callable[[Tensor], Tensor], vocab: int) -> None:
        super().__init__()
        self.change, self.vocab = change, vocab

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        return self.change(nn.functional.one_hot(ids, self.vocab).float()), None


def findings(change: Callable[[Tensor], Tensor], seed: int = 0, **subject: object) -> list[Finding]:
    specimen = specimen_of(lambda dim, depth, vocab: Function(change, vocab), seed=seed, **subject)
    found = [step for step in examine_causality(specimen) if isinstance(step, Finding)]
    assert not list(specimen.failures.findings())
    return found


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 128), st.integers(1, 129), st.integers(0, 1000))
def test_any_single_look_ahead_is_caught(target: int, ahead: int, seed: int) -> None:
    source = min(129, target + ahead)

    def change(x: Tensor) -> Tensor:
        if x.shape[1] <= source:
            return x
        y = x.clone()
        y[:, target] = y[:, target] + x[:, source]
        return y

    assert [item.code for item in findings(change, seed)] == ["causality.leak"]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 129), st.integers(0, 129), st.integers(0, 1000))
def test_any_look_back_passes(target: int, source: int, seed: int) -> None:
    target, source = max(target, source), min(target, source)

    def change(x: Tensor) -> Tensor:
        if x.shape[1] <= target:
            return x
        y = x.clone()
        y[:, target] = y[:, target] + x[:, source]
        return y

    assert findings(change, seed) == []


def test_a_leak_beyond_the_design_s_own_chunks_is_caught() -> None:
    def change(x: Tensor) -> Tensor:
        return torch.cat([x[:, :400], x[:, 400:] + x[:, 400:].mean(1, True)], 1) if x.shape[1] > 400 else x

    assert findings(change) == []
    assert [item.code for item in findings(change, chunks=(200,))] == ["causality.leak"]


def test_rows_that_mix_are_not_taken_for_a_leak() -> None:
    assert findings(lambda x: x + x.mean(0, keepdim=True)) == []


@settings(deadline=None, max_examples=50)
@given(st.integers(20, 600), st.lists(st.integers(2, 300), max_size=3), st.integers(4, 40), st.integers(0, 100))
def test_positions_lie_at_chunk_borders(length: int, chunks: list[int], count: int, seed: int) -> None:
    positions = probe_positions(length, chunks, count, random.Random(seed))
    assert positions == sorted(set(positions))
    assert all(0 <= position < length - 1 for position in positions)
    assert len(positions) == min(count, length - 1)
    inside = [chunk for chunk in chunks if chunk < length - 1]
    if inside and count >= 6 * len(chunks) + 12:
        assert max(inside) - 1 in positions


@pytest.mark.parametrize("share", [1e-1, 1e-2])
def test_leaks_far_above_rounding_are_caught(share: float) -> None:
    assert findings(lambda x: x + share * x.mean(1, keepdim=True))


def test_a_leak_below_the_tolerance_passes() -> None:
    assert findings(lambda x: x + 1e-6 * x.mean(1, keepdim=True)) == []


def test_randomness_of_its_own_is_named() -> None:
    assert [f.code for f in findings(lambda x: x * torch.rand(1, generator=_unseeded()))] == ["causality.random"]


def test_a_leak_in_one_mode_names_it() -> None:
    class InTraining(Function):
        def forward(self, ids: Tensor) -> tuple[Tensor, None]:
            x, _ = super().forward(ids)
            return (x + x.mean(1, keepdim=True) if self.training else x), None

    specimen = specimen_of(lambda dim, depth, vocab: InTraining(lambda x: x, vocab))
    found = [step for step in examine_causality(specimen) if isinstance(step, Finding)]
    assert "Only train mode leaks" in found[0].hint
    assert dataclasses.replace(CONFIG).tolerance == found[0].limit


def _unseeded() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator
