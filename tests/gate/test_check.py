from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from asiarch_hpc.errors import DesignError
from asiarch_hpc.gate import report as gate_report
from asiarch_hpc.records import GateReport, from_json, to_json
from tests.gate.planted_defects import DEFECTS
from tests.gate.planted_leaks import LEAKS
from tests.gate.planted_sound import SOUND
from tests.gate.planted_text import STATIC
from tests.gate.toys import CONFIG, DEPTH, DIM, REFERENCE, builder, check_plant, codes, design, run_check

# Every finding by which a running design can be refused, but for the sandbox's own.
REJECTIONS = {
    *("construct.failed", "construct.width", "size.parameters", "precision.bf16"),
    *("forward.failed", "forward.shape", "forward.nonfinite", "forward.dtype"),
    *("backward.failed", "backward.nonfinite", "gradient.dead", "gradient.unregistered"),
    *("causality.leak", "causality.gradient", "causality.random", "causality.documents"),
    *("prefix.length", "isolation.batch"),
    *("determinism.eval", "determinism.drift"),
    *("complexity.quadratic", "complexity.slow", "complexity.memory"),
    *("learn.gradient_norm", "learn.no_progress"),
}


def some(names: Iterable[str]) -> list[Any]:
    """Every fourth name; the others are marked slow."""
    return [pytest.param(name, marks=pytest.mark.slow if i % 4 else ()) for i, name in enumerate(names)]


def test_the_collection_is_as_large_as_it_should_be() -> None:
    assert len(LEAKS | DEFECTS) == len(LEAKS) + len(DEFECTS) >= 70
    assert len(SOUND) >= 45
    assert {code for plant in (LEAKS | DEFECTS).values() for code in plant.codes} >= REJECTIONS


@pytest.mark.parametrize("name", some(LEAKS | DEFECTS))
def test_defects_are_caught_with_their_code(name: str, tmp_path: Path) -> None:
    plant = (LEAKS | DEFECTS)[name]
    report = check_plant(plant, tmp_path)
    found = codes(report)
    assert found & set(plant.codes), gate_report.to_text(report)
    assert "causality.leak" not in found or name in LEAKS or plant.leaks, gate_report.to_text(report)
    assert not report.passed


@pytest.mark.parametrize("name", some(SOUND))
def test_sound_designs_pass(name: str, tmp_path: Path) -> None:
    report = check_plant(SOUND[name], tmp_path)
    assert report.passed, gate_report.to_text(report)
    assert codes(report) == set()


@pytest.mark.parametrize("name", STATIC)
def test_texts_are_refused_with_their_code(name: str, tmp_path: Path) -> None:
    source, code = STATIC[name]
    report = run_check(source, tmp_path)
    assert code in codes(report), gate_report.to_text(report)
    assert not report.passed


def test_every_independent_fault_is_reported(tmp_path: Path) -> None:
    source = design(
        "y = x + x.mean(1, keepdim=True); assert L != 33",
        "self.unused = nn.Parameter(torch.ones(dim, 4 * dim))",
        before="import os",
    )
    found = codes(run_check(source, tmp_path))
    assert found == {
        *("static.import", "size.parameters", "forward.failed", "gradient.dead"),
        *("causality.leak", "causality.gradient"),
    }


def test_one_cause_in_many_cases_is_one_finding(tmp_path: Path) -> None:
    report = run_check(design("y = x.view(B, L // 16, 16, D).cumsum(2).view(B, L, D)"), tmp_path)
    failed = [item for item in report.findings if item.code == "forward.failed" and "length 1" in item.message]
    assert len(failed) == 1
    assert "batch 1, length 1;" in failed[0].message
    assert "batch 2, length 1;" in failed[0].message


def test_a_fault_names_the_line_of_the_design(tmp_path: Path) -> None:
    source = design("y = x @ torch.ones(3, 3)")
    report = run_check(source, tmp_path)
    line = source.splitlines().index("        y = x @ torch.ones(3, 3)") + 1
    assert any(f"line {line}" in item.message for item in report.findings), gate_report.to_text(report)


def test_no_matching_size_is_a_finding_and_the_rest_is_examined_at_the_reference(tmp_path: Path) -> None:
    def no_size() -> tuple[int, int]:
        raise DesignError("the nearest is 7 at dim=8")

    leaking = design("y = x + x.mean(1, keepdim=True)")
    report = run_check(leaking, tmp_path, size=no_size, reference_size=(DIM, 1))
    assert {"size.unmatched", "causality.leak"} <= codes(report)
    assert codes(run_check(leaking, tmp_path, size=no_size)) == {"size.unmatched"}


def test_much_more_arithmetic_is_flagged_but_passes(tmp_path: Path) -> None:
    source = design("y = x\nfor _ in range(6): y = self.into(y)")
    reference = builder(REFERENCE)
    report = run_check(source, tmp_path, build_reference=lambda vocab: reference(DIM, DEPTH, vocab))
    assert report.passed
    assert codes(report, "warn") == {"size.flops"}


def test_printing_much_is_flagged_but_passes(tmp_path: Path) -> None:
    report = run_check(design("print('x' * 100_000); y = x"), tmp_path)
    assert report.passed
    assert codes(report, "warn") == {"sandbox.printed"}


@pytest.mark.parametrize(
    ("mix", "code", "config"),
    [
        ("while True: pass", "sandbox.timeout", {"timeout_s": 2.0}),
        ("kept = []\nwhile True: kept.append(torch.ones(1 << 24))", "sandbox.memory", {"memory_gb": 0.5}),
        ("import os; os._exit(0)", "sandbox.exit", {}),
        ("import os; os.kill(os.getpid(), 9)", "sandbox.killed", {}),
        ("import ctypes; ctypes.string_at(0)", "sandbox.killed", {}),
        ("import os, time\nwhile True: os.fork(); time.sleep(0.05)", "sandbox.processes", {"processes": 8}),
        ("import os; os.write(3, b'{}\\n'); y = x", "sandbox.protocol", {}),
    ],
)
def test_what_the_sandbox_ends_is_one_clear_finding(
    mix: str, code: str, config: dict[str, float], tmp_path: Path
) -> None:
    report = run_check(design(mix), tmp_path, config=dataclasses.replace(CONFIG, **config))
    assert code in codes(report), gate_report.to_text(report)
    ends = {item.code for item in report.findings if item.code.startswith("sandbox.")} - {"sandbox.attempt"}
    assert ends == {code}
    assert "during" in next(item.message for item in report.findings if item.code == code) or mix.endswith("y = x")
    assert not report.passed


def test_findings_before_an_end_are_kept(tmp_path: Path) -> None:
    source = design("import os\nif B == 4: os._exit(0)\ny = x", "self.unused = nn.Parameter(torch.ones(4))")
    report = run_check(source, tmp_path)
    assert codes(report) == {"static.import", "gradient.dead", "sandbox.exit"}


def test_a_forged_answer_does_not_pass(tmp_path: Path) -> None:
    forged = json.dumps({"record": {"measured": {"dim": "8", "parameters": 1}}}) + json.dumps({"result": None})
    report = run_check(design(f"import os; os.write(3, {forged!r}.encode()); os._exit(0); y = x"), tmp_path)
    assert not report.passed


def test_nothing_is_left_in_the_writable_folder(tmp_path: Path) -> None:
    source = design("import os; os.makedirs('HOLE/a', exist_ok=True); y = x").replace(
        "'HOLE/a'", "os.environ['TMPDIR'] + '/hole/a'"
    )
    run_check(source.replace("y = x", "os.chmod(os.environ['TMPDIR'] + '/hole', 0); y = x"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_same_design_same_numbers(tmp_path: Path) -> None:
    first, second = (run_check(REFERENCE, tmp_path) for _ in range(2))
    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(second, seconds=0.0)


def test_the_report_survives_its_json_form(tmp_path: Path) -> None:
    report = run_check(LEAKS["only in train mode"].source, tmp_path)
    assert from_json(GateReport, json.loads(json.dumps(to_json(report)))) == report


def test_texts_name_code_measure_limit_and_repair(tmp_path: Path) -> None:
    report = run_check(LEAKS["only in train mode"].source, tmp_path)
    for text in (gate_report.to_text(report, name="toy"), gate_report.to_prompt(report)):
        assert "causality.leak" in text
        assert "limit 0.001" in text
        assert "Only train mode leaks" in text
    assert gate_report.to_text(report, name="toy").startswith("gate: toy REJECTED")
    assert gate_report.to_prompt(run_check(REFERENCE, tmp_path)) == ""


def test_the_weakest_rung_is_loud_and_runs_no_text_that_announces_harm(tmp_path: Path) -> None:
    weak = dataclasses.replace(CONFIG, sandbox="limits")
    report = run_check(REFERENCE, tmp_path, config=weak)
    assert report.passed
    assert codes(report, "warn") == {"sandbox.limits"}
    report = run_check(design("import os; y = x + x.mean(1, True)"), tmp_path, config=weak)
    assert codes(report) == {"static.import"}
