from __future__ import annotations

import pytest

from asiarch_hpc.gate.checks.causality import examine_causality
from asiarch_hpc.gate.checks.gradients import examine_gradients
from tests.gate.layers import design_specimen, found
from tests.gate.planted import SOUND
from tests.gate.toys import design

CAUSAL_FFT = """
n = 2 * L
k = torch.fft.rfft(self.taps[:L].float(), n=n, dim=0)
y = torch.fft.irfft(torch.fft.rfft(x.float(), n=n, dim=1) * k, n=n, dim=1)[:, :L].to(x.dtype)
"""


def codes(source: str, **subject: object) -> list[str]:
    return [item.code for item in found(examine_gradients, design_specimen(source, **subject))]


@pytest.mark.parametrize(("target", "source"), [(15, 16), (31, 61), (63, 123)])
def test_a_share_too_small_for_perturbation_is_caught(target: int, source: int) -> None:
    leaking = design(f"y = x.clone()\nif L > {source}: y[:, {target}] += 2e-4 * x[:, {source}]")
    assert found(examine_causality, design_specimen(leaking, chunks=())) == []
    assert codes(leaking, chunks=()) == ["causality.gradient"]


@pytest.mark.parametrize("name", SOUND)
def test_sound_designs_pass(name: str) -> None:
    assert codes(SOUND[name]) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rounding_of_transforms_is_no_leak(precision: str) -> None:
    specimen = design_specimen(design(CAUSAL_FFT, "self.taps = nn.Parameter(torch.randn(512, dim))"), chunks=())
    specimen.precision = precision  # type: ignore[assignment]
    specimen.depth = 6
    assert found(examine_gradients, specimen) == []


def test_the_tolerance_lies_between_rounding_and_the_smallest_leak() -> None:
    small = CAUSAL_FFT + "y = y + 1e-3 * x.roll(-1, 1) * (torch.arange(L) < L - 1)[:, None]"
    assert codes(design(small, "self.taps = nn.Parameter(torch.randn(512, dim))")) == ["causality.gradient"]


def test_a_small_share_of_a_mean_adds_up() -> None:
    leaking = design("y = x + 1e-3 * x.mean(1, keepdim=True)")
    assert found(examine_causality, design_specimen(leaking)) == []
    assert codes(leaking) == ["causality.gradient"]


def test_a_leak_in_one_mode_names_it() -> None:
    (item,) = found(examine_gradients, design_specimen(design("y = x + x.mean(1, True) if self.training else x")))
    assert "in train mode" in item.message
    assert item.measured is not None
    assert item.limit is not None
    assert item.measured > item.limit


def test_a_leak_beyond_the_second_chunk_is_caught() -> None:
    source = design(
        "chunk = 100; y = torch.cat([x[:, :200], x[:, 200:] + x[:, 200:].mean(1, True)], 1) if L > 200 else x"
    )
    assert codes(source) == ["causality.gradient"]


def test_rows_that_mix_are_not_taken_for_a_leak() -> None:
    assert codes(design("y = x + x.mean(0, True)")) == []


def test_an_embedding_changed_in_place_is_followed() -> None:
    source = design("y = x + x.mean(1, True)").replace("x = self.into(", "X.mul_(2.0); x = self.into(")
    assert codes(source) == ["causality.gradient"]


def test_what_has_no_gradient_is_left_to_other_checks() -> None:
    assert codes(design("y = torch.exp(x); y += 1")) == []  # backward fails
    assert codes(design("y = x.detach().mean(1, True) + x")) == []  # perturbation sees it


def test_gradients_that_are_not_finite_are_reported_as_such() -> None:
    assert codes(design("y = x + torch.sqrt((x - x).square())")) == ["backward.nonfinite"]
