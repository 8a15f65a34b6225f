"""Unit tests of units as code: run in the sandbox, told by name and line, held to their time."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch

from asiarch_hpc.config import GateConfig
from asiarch_hpc.designs.contract import load_class
from asiarch_hpc.designs.template import TemplateTree, Unit
from asiarch_hpc.designs.template_compose import compose_template, compose_tests
from asiarch_hpc.gate.sandbox import RUNGS, probe
from asiarch_hpc.gate.unit_tests import examine_unit_tests, run_unit_tests

UNIT = """import torch
from asiarch_hpc.designs.genesys_base import GAUBase, UnitDecl, gau_test


class Twice(GAUBase):
    def __init__(self, embed_dim, block_loc, kwarg_all, device=None, dtype=None, **kwargs):
        self.factory_kwargs = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, block_loc, kwarg_all)

    def _forward(self, X, **Z):
        return 2 * X, {}


CHILDREN_DECLARATIONS = []


@gau_test
def test_Twice_doubles(device=None, dtype=None):
    Y, Z = Twice(4, (0, 1), {})(torch.ones(1, 2, 4))
    print("a test may print")
    assert Y.max() == 2, "not doubled"
"""


def parts(*tests: str) -> tuple[str, str]:
    """Composed program and tests of UNIT with more tests."""
    tree = TemplateTree("twice", "Twice", {"Twice": Unit("\n\n\n".join([UNIT, *tests]))})
    return compose_template(tree), compose_tests(tree)


def one(name: str, body: str) -> str:
    return f"@gau_test\ndef test_Twice_{name}(device=None, dtype=None):\n    {body}\n"


@pytest.fixture
def module() -> ModuleType:
    return sys.modules[load_class(parts()[0]).__module__]


def test_tests_that_pass_say_nothing(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(run_unit_tests(module, parts()[1], seconds=30.0)) == []
    assert capsys.readouterr().out == ""


def test_each_failure_is_told_with_its_cause_and_line(module: ModuleType) -> None:
    tests = parts(one("triples", "assert False, 'not tripled'"), one("ends", "raise SystemExit(0)"))[1]
    found = list(run_unit_tests(module, tests, seconds=30.0))
    line = next(n for n, text in enumerate(tests.splitlines(), 1) if "tripled" in text)
    assert found == [
        f"test_Twice_triples: AssertionError: not tripled (line {line} of the tests)",
        f"test_Twice_ends: SystemExit: 0 (line {next(n for n, t in enumerate(tests.splitlines(), 1) if 'Exit' in t)} "
        "of the tests)",
    ]


def test_tests_start_alike_and_leave_no_trace(module: ModuleType) -> None:
    seen = "assert torch.rand(()) == torch.manual_seed(5) and torch.rand(()) or True"
    draws = one("draws", "global x; x = torch.rand(())") + "\n\n" + one("again", "assert torch.rand(()) == x")
    before = torch.get_rng_state()
    assert list(run_unit_tests(module, parts(draws, one("seeds", seen))[1], seconds=30.0)) == []
    assert torch.equal(torch.get_rng_state(), before)
    assert "test_Twice_doubles" not in vars(module)


def test_a_slow_test_ends_when_the_time_is_over(module: ModuleType) -> None:
    tests = parts(one("hangs", "while True: pass"), one("waits", "pass"))[1]
    found = list(run_unit_tests(module, tests, seconds=0.5))
    assert found == [
        "test_Twice_hangs was not done when the 0.5 s for all tests were over",
        "no time was left for test_Twice_waits after 0.5 s",
    ]


def test_beside_the_main_thread_tests_run_without_a_limit(module: ModuleType) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(run_unit_tests(module, parts()[1], seconds=30.0)))
    thread.start()
    thread.join()
    assert found == []


def test_tests_that_do_not_load_are_told(module: ModuleType) -> None:
    tests = "import no_such_module\n\n\n" + parts()[1]
    (found,) = run_unit_tests(module, tests, seconds=30.0)
    assert found.startswith("the tests cannot be loaded: ModuleNotFoundError")


def test_in_the_sandbox_a_failure_is_a_warning(tmp_path: Path) -> None:
    if all(map(probe, RUNGS[:-1])):
        pytest.skip("no rung that holds files works on this machine")
    source, tests = parts(one("writes", "open('/tmp/asiarch-unit-test', 'w')"), one("dies", "import os; os._exit(0)"))
    found = examine_unit_tests(source, tests, config=GateConfig(timeout_s=60.0), writable=tmp_path)
    assert {(item.code, item.severity) for item in found} == {("unit.test_failed", "warn")}
    assert [item.message.split(":")[0] for item in found] == ["test_Twice_writes", "the tests did not end"]
    assert all(item.hint for item in found)
    assert not Path("/tmp/asiarch-unit-test").exists()


def test_without_tests_no_process_is_made(tmp_path: Path) -> None:
    assert examine_unit_tests("not looked at", "", config=GateConfig(sandbox="no such rung"), writable=tmp_path) == []
