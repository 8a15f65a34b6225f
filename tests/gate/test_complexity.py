from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from asiarch_hpc.gate import report as gate_report
from asiarch_hpc.gate.checks import clock as clock_module
from asiarch_hpc.gate.checks.clock import Clock
from asiarch_hpc.gate.checks.complexity import examine_complexity
from asiarch_hpc.gate.checks.growth import fit, halved
from asiarch_hpc.gate.checks.passes import backward
from asiarch_hpc.gate.checks.subject import Specimen
from asiarch_hpc.records import Finding, GateReport, from_json, to_json
from tests.gate.toys import CONFIG, DEPTH, DIM, LENGTH, REFERENCE, VOCAB, builder, design, run_check, specimen_of

CALM = dataclasses.replace(
    CONFIG, exponent_lengths=[64, 128, 256, 512, 1024], clock_decides=False, clock_repeats=1, count_launches=20_000
)

QUADRATIC = {
    "softmax attention": "y = (x @ x.mT / D ** 0.5).masked_fill("
    "torch.ones(L, L, dtype=torch.bool, device=x.device).triu(1), -1e9).softmax(-1) @ x",
    "fused attention": "q = x.view(B, L, 2, D // 2).transpose(1, 2)\n"
    "y = F.scaled_dot_product_attention(q, q, q, is_causal=True).transpose(1, 2).reshape(B, L, D)",
    "a mask over all pairs alone": "y = x * torch.ones(L, L, device=x.device).tril().mean(1)[:, None]",
    "a long convolution without FFT": "k = self.kernel.exp()[:, None].expand(D, 1, L)\n"
    "y = F.conv1d(F.pad(x.mT, (L - 1, 0)), k, groups=D).mT",
    "work of length^1.5": "n = max(1, int(L ** 0.5))\ny = x\nfor _ in range(n): y = y.cumsum(1) * 0.5",
    "values decide": "y = (x @ x.mT).tril() @ x / L + 0 * float(x.detach().sum())",
}
SUBQUADRATIC = {
    "running mean": "y = x.cumsum(1) / torch.arange(1, L + 1, device=x.device)[:, None]",
    "FFT convolution": "k = torch.fft.rfft(self.kernel.expand(D, L), n=2 * L)\n"
    "y = torch.fft.irfft(torch.fft.rfft(x.mT, n=2 * L) * k, n=2 * L)[..., :L].mT",
    "attention in chunks": "p = (-L) % 16\nc = F.pad(x, (0, 0, 0, p)).view(B, -1, 16, D)\n"
    "y = ((c @ c.mT).tril() @ c).reshape(B, L + p, D)[:, :L] / 16",
    "sliding window": "w = F.pad(x, (0, 0, 7, 0)).unfold(1, 8, 1)\n"
    "y = torch.einsum('bld,bldw->blw', x, w).softmax(-1)\ny = torch.einsum('blw,bldw->bld', y, w)",
    "chunks with a carried state": "y, s = [], x.new_zeros(B, 1, D)\n"
    "for c in x.split(32, dim=1):\n    c = c.cumsum(1) + s\n    s = c[:, -1:]\n    y.append(c)\n"
    "y = torch.cat(y, 1) / L",
    "a scan of log L steps": "y, n = x, 1\nwhile n < L:\n    y = y + 0.5 * F.pad(y, (0, 0, n, 0))[:, :L]\n    n *= 2\n",
    "sorting": "y = x + 0 * x.sort(1).values.cumsum(1)",
}
KERNEL = "self.kernel = nn.Parameter(torch.zeros(dim, 1))"


def examined(source: str, **changes: Any) -> tuple[dict[str, Finding], dict[str, Any], Specimen]:
    """Findings by code, measured fields, and the specimen with what failed in it."""
    specimen = specimen_of(builder(source), **{"config": CALM, **changes})
    findings: dict[str, Finding] = {}
    measured: dict[str, Any] = {}
    for step in examine_complexity(specimen):
        if isinstance(step, Finding):
            findings[step.code] = step
        elif isinstance(step, dict):
            measured |= step
    return findings, measured, specimen


def beside(reference: str = REFERENCE, **changes: Any) -> dict[str, Any]:
    config = dataclasses.replace(CALM, **changes)
    return {"build_reference": lambda vocab: builder(reference)(DIM, DEPTH, vocab), "config": config}


@given(exponent=st.floats(0.2, 3), factor=st.floats(1e-6, 1e6), count=st.integers(3, 9))
@settings(deadline=None, max_examples=30)
def test_a_power_law_is_fitted_exactly(exponent: float, factor: float, count: int) -> None:
    lengths = [16 * 2**step for step in range(count)]
    found = fit(lengths, [factor * length**exponent for length in lengths])
    assert found.exponent == pytest.approx(exponent, abs=1e-6)
    assert found.tail == pytest.approx(exponent, abs=1e-6)
    assert found.error < 1e-6


def test_the_confidence_covers_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, tries = [64, 128, 256, 512, 1024], 400
    inside = 0
    for _ in range(tries):
        noise = (0.2 * torch.randn(5, generator=generator)).exp().tolist()
        found = fit(lengths, [length**1.3 * error for length, error in zip(lengths, noise, strict=True)])
        inside += abs(found.exponent - 1.3) <= found.error
    assert 0.92 < inside / tries < 0.98


def test_lengths_are_halved_until_they_are_affordable() -> None:
    assert halved([256, 512, 1024], (10.0, 0.0), 100.0) == [256, 512, 1024]
    assert halved([256, 512, 1024], (0.0, 1.0), 500.0) == [64, 128, 256]
    assert halved([256, 512, 1024], (0.0, 0.0), 1.0, longest=300) == [64, 128, 256]
    assert halved([256, 512, 1024], (99.0, 1.0), 1.0) == [1, 2, 4]


@pytest.mark.parametrize("name", QUADRATIC)
def test_quadratic_growth_is_refused_where_attention_is_not_allowed(name: str) -> None:
    source = design(QUADRATIC[name], KERNEL)
    findings, _, _ = examined(source, attention=False)
    found = findings["complexity.quadratic"]
    assert found.severity == "reject"
    assert found.measured is not None
    assert found.measured > CALM.growth_limit
    assert "complexity.quadratic" not in examined(source, attention=True)[0]


@pytest.mark.parametrize("name", SUBQUADRATIC)
def test_growth_up_to_n_log_n_passes(name: str) -> None:
    findings, measured, specimen = examined(design(SUBQUADRATIC[name], KERNEL), attention=False)
    assert set(findings) <= {"complexity.fit"}
    assert list(specimen.failures.findings()) == []
    assert measured["time_exponent"] < 1.2


def test_both_exponents_are_reported_with_their_confidence() -> None:
    patient = dataclasses.replace(CALM, clock_seconds=60.0)  # no stall of this machine shortens the lengths
    findings, measured, _ = examined(design(QUADRATIC["softmax attention"]), config=patient)
    fitted = findings["complexity.fit"]
    assert fitted.severity == "property"
    assert fitted.measured == measured["time_exponent"]
    assert "95 %" in fitted.message
    assert "peak memory" in fitted.message
    assert 1.4 < measured["time_exponent"] < 2.1
    assert 1.4 < measured["memory_exponent"] < 2.1
    assert 0 < measured["time_exponent_error"] < 0.6
    assert measured["clock_seconds"] > 0
    assert measured["clock_tokens"] == 4 * LENGTH


def test_fused_attention_keeps_no_quadratic_memory() -> None:
    _, measured, _ = examined(design(QUADRATIC["fused attention"]))
    assert measured["time_exponent"] > 1.2
    assert measured["memory_exponent"] == pytest.approx(1.0, abs=0.1)


def test_a_slow_design_is_refused_beside_the_reference() -> None:
    slow = design("y = x\nfor t in range(L): y = torch.cat([y[:, :t], y[:, t:] * 0.99], 1)")
    findings, measured, _ = examined(slow, **beside(count_launches=2_000))
    found = findings["complexity.slow"]
    assert found.severity == "reject"
    assert found.measured == measured["relative_seconds"] > 3
    assert "loops over tokens" in found.hint
    loose, _, _ = examined(slow, **beside(slow_multiple=1e9, count_launches=2_000))
    assert "complexity.slow" not in loose


def test_a_greedy_design_is_refused_beside_the_reference() -> None:
    greedy = design("y = (x[..., None] * torch.linspace(0, 1, 64, device=x.device)).cumsum(1).relu().mean(-1)")
    findings, measured, _ = examined(greedy, **beside(slow_multiple=1e9))
    found = findings["complexity.memory"]
    assert found.severity == "reject"
    assert found.measured == measured["relative_bytes"] > 3
    assert "MB" in found.message


def test_a_design_beside_itself_costs_once_as_much() -> None:
    findings, measured, _ = examined(REFERENCE, **beside())
    assert set(findings) == {"complexity.fit"}
    assert measured["relative_seconds"] == 1.0
    assert measured["relative_bytes"] == 1.0
    assert measured["clock_relative_seconds"] > 0


def test_equal_calls_count_equal_numbers() -> None:
    source = design(SUBQUADRATIC["chunks with a carried state"])
    first, second = (examined(source, **beside()) for _ in range(2))
    assert first[0] == second[0]
    counted = {name for name in first[1] if not name.startswith("clock_")}
    assert {name: first[1][name] for name in counted} == {name: second[1][name] for name in counted}


def test_what_the_clock_says_takes_no_part_in_comparisons(tmp_path: Path) -> None:
    first, second = (run_check(REFERENCE, tmp_path, **beside()) for _ in range(2))
    assert first == second
    assert first.clock_seconds > 0
    assert from_json(GateReport, json.loads(json.dumps(to_json(first)))).clock_seconds == first.clock_seconds


class Machine:
    """A clock that a pretended machine moves: each step takes so long as its model is said to take, and a disturbed
    one a hundred times as long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: list[float], disturbed: set[int]) -> None:
        self.time, self.steps = 0.0, 0
        self.models: dict[int, int] = {}
        self._seconds, self._disturbed = seconds, disturbed
        monkeypatch.setattr(clock_module, "backward", self.backward)

    def now(self) -> float:
        return self.time

    def backward(self, specimen: Specimen, model: nn.Module, rows: torch.Tensor, *rest: Any) -> bool:
        seconds = self._seconds[self.models.setdefault(id(model), len(self.models))]
        self.time += seconds * (rows.shape[1] - 1) * (100.0 if self.steps in self._disturbed else 1.0)
        self.steps += 1
        return True


@given(disturbed=st.sets(st.integers(2, 32), max_size=10))
@settings(deadline=None, max_examples=20)
def test_disturbances_do_not_change_what_the_clock_says(disturbed: set[int]) -> None:
    # Three rounds of five lengths and two models after three steps: 10 a round. A step that is disturbed in every
    # round is slow; the least of three counts otherwise, and the least of two before the rounds.
    spared = {step for step in disturbed if not all((step - 3) % 10 + 3 + 10 * n in disturbed for n in range(3))}
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine = Machine(monkeypatch, [4e-6, 2e-6], spared)
        config = dataclasses.replace(CALM, clock_repeats=3, clock_seconds=10.0)
        specimen = specimen_of(builder(REFERENCE), config=config)
        found = Clock(specimen, specimen_of(builder(REFERENCE), config=config), precision="fp32", now=machine.now)
        assert found.run()
    assert found.relative()[0] == pytest.approx(2.0)
    assert found.design.growth.exponent == pytest.approx(1.0)


def test_slow_designs_are_clocked_at_shorter_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [0.01], set())
    found = Clock(specimen_of(builder(REFERENCE), config=CALM), None, precision="fp32", now=machine.now)
    assert found.run()
    assert sum(found.lengths) * 0.01 <= CALM.clock_seconds
    assert len(found.lengths) == 5


def test_the_clock_refuses_only_where_it_may() -> None:
    sleepy = design("import time; time.sleep(0.02); y = x")
    for decides in (True, False):
        quick = beside(clock_decides=decides, exponent_lengths=[16, 32, 64], clock_seconds=0.1)
        findings, measured, _ = examined(sleepy, **quick)
        assert measured["clock_relative_seconds"] > 3
        assert measured["relative_seconds"] < 3
        assert ("complexity.slow" in findings) is decides
        assert not decides or "by the clock" in findings["complexity.slow"].message


def test_a_design_with_a_longest_length_is_fitted_below_it() -> None:
    findings, measured, specimen = examined(design("assert L <= 130; y = x"))
    assert set(findings) == {"complexity.fit"}
    assert list(specimen.failures.findings()) == []
    assert measured["time_exponent"] > 0.5


def test_what_fails_is_named_by_its_pass() -> None:
    for mix, code in (("assert False; y = x", "forward.failed"), ("y = x.detach().numpy() and x", "forward.failed")):
        _, _, specimen = examined(design(mix))
        assert {item.code for item in specimen.failures.findings()} == {code}
    broken = "class Broken(torch.autograd.Function):\n    forward = staticmethod(lambda ctx, x: x * 1)\n"
    broken += "    backward = staticmethod(lambda ctx, g: 1 / 0)"
    _, _, specimen = examined(design("y = Broken.apply(x)", before=broken))
    assert {item.code for item in specimen.failures.findings()} == {"backward.failed"}


def test_a_design_that_works_in_bf16_alone_is_counted_and_clocked_in_it(tmp_path: Path) -> None:
    source = design("y = x.to(torch.bfloat16) @ torch.eye(D, dtype=torch.bfloat16, device=x.device)")
    report = run_check(source, tmp_path, **beside())
    assert report.only_precision == "bf16"
    warned = [item for item in report.findings if item.code == "precision.fp32"]
    assert [item.severity for item in warned] == ["warn"]
    assert "train in bf16" in warned[0].message
    assert report.flops_per_token > 0
    assert report.clock_seconds > 0


def test_the_text_shows_cost_and_clock_beside_the_baseline(tmp_path: Path) -> None:
    lines = gate_report.to_text(run_check(REFERENCE, tmp_path, **beside()), name="toy").splitlines()
    assert len(lines) >= 4
    assert "size" in lines[1]
    assert "1.00 times the baseline's time and 1.00 times its memory" in lines[2]
    assert any("complexity.fit" in line and "length^" in line for line in lines)
    assert "ms a training step" in lines[3]


def test_the_model_of_the_clock_is_the_real_step() -> None:
    specimen = specimen_of(builder(REFERENCE), config=CALM)
    rows = specimen.ids(2, 9, specimen.generator())
    assert backward(specimen, specimen.build(VOCAB), rows, "two rows", "fp32")
