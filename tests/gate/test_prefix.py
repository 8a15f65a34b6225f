from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.gate.checks.prefix import examine_prefixes, prefix_lengths
from tests.gate.layers import design_specimen, found
from tests.gate.planted import LEAKS, SOUND
from tests.gate.toys import SOUND_MIX, design, specimen_of

DEPENDENT = {
    "divided by the length": "y = x.cumsum(1) / L",
    "positions counted from the end": "y = x * torch.arange(L, 0, -1)[:, None] / 100",
    "positions scaled by the length": "y = x * torch.linspace(0, 1, L)[:, None]",
    "another branch from a length on": "y = x.cumsum(1) / 10 if L > 100 else x",
    "another branch for odd lengths": "y = x * (1 + L % 2)",
    "chunks of a quarter of the length": """
        size = max(1, L // 4)
        n = torch.arange(L)
        s = x.cumsum(1)
        start = n // size * size
        y = s - s[:, start]
    """,
    "only in training": "y = x / L ** 0.5 if self.training else x",
    "only in evaluation": "y = x if self.training else x / L ** 0.5",
}

# Leaks that also depend on the length: by a rank among L tokens, by a sum over L weights.
BY_LENGTH_TOO = ("depth by a threshold of the sequence", "mask after the softmax")


def codes(source: str) -> list[str]:
    return [item.code for item in found(examine_prefixes, design_specimen(source))]


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_dependence_on_the_length_is_caught(name: str) -> None:
    assert codes(design(DEPENDENT[name])) == ["prefix.length"]


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 100), st.integers(2, 129), st.floats(0.05, 5))
def test_any_switch_at_a_length_is_caught(position: int, length: int, amount: float) -> None:
    assert codes(design(f"y = x.clone()\nif L > {length}: y[:, {position % length}] += {amount}")) == ["prefix.length"]


@pytest.mark.parametrize("name", [name for name in LEAKS if name not in BY_LENGTH_TOO])
def test_a_leak_of_content_is_not_reported_a_second_time(name: str) -> None:
    assert codes(LEAKS[name]) == []


@pytest.mark.parametrize("name", SOUND)
def test_sound_designs_pass(name: str) -> None:
    assert codes(SOUND[name]) == []


def test_both_faults_of_one_design_are_told_apart() -> None:
    (item,) = found(examine_prefixes, design_specimen(design("y = x + 3 / L + 0.02 * x.mean(1, True)")))
    assert item.code == "prefix.length"
    assert item.measured is not None
    assert item.limit is not None
    assert item.measured > item.limit
    assert "eval and train" in item.message


def test_random_numbers_of_training_are_not_taken_for_a_dependence() -> None:
    assert codes(design("y = F.dropout(x, 0.3, self.training)")) == []
    assert codes(design("y = F.dropout(x, 0.3, True)")) == []


def test_switches_beyond_the_design_s_own_chunks_are_caught() -> None:
    assert codes(design("chunk = 300; y = x * 2 if L > 2 * chunk else x")) == ["prefix.length"]


def test_a_length_that_fails_is_reported_as_a_failure() -> None:
    assert codes(design("y = x * (x[:, 1, :1, None] < 9)")) == ["forward.failed"]


@given(st.lists(st.integers(2, 600), max_size=6, unique=True))
def test_prefixes_end_around_the_design_s_own_chunks(chunks: list[int]) -> None:
    specimen = specimen_of(lambda dim, depth, vocab: pytest.fail("not built"), chunks=tuple(sorted(chunks)))
    lengths = prefix_lengths(specimen)
    assert lengths == sorted(set(lengths))
    assert 1 == lengths[0] <= lengths[-1] < specimen.longest
    assert all({chunk - 1, chunk, chunk + 1} - {0} <= set(lengths) for chunk in chunks if chunk + 1 < specimen.longest)


def test_running_statistics_pass() -> None:
    assert codes(design(SOUND_MIX)) == []
