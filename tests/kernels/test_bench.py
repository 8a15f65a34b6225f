"""The benchmark without a GPU: its cases on small operands, what it prints, and the process of its rivals."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count

import pytest
import torch
from torch import Tensor

from tests.kernels import bench
from tests.kernels.bench import Device, Found, header, rival_names, row, run, selected, verdict
from tests.kernels.bench_case import COMPILED, FLA, SETS, Case, Draw, Peaks, Target, Times, check, disagreement, measure
from tests.kernels.bench_channels import HALF, SINGLE, convolution, gates, head, long, norm, scan
from tests.kernels.bench_mixers import FORMS, attention, delta, layer, ttt
from tests.kernels.bench_rivals import Rivals
from tests.kernels.conftest import CALLS

SMALL = [
    *(
        delta(2, 40, 2, 8, gated=gated, documents=documents)
        for gated, documents in ((False, False), (True, False), (False, True))
    ),
    *(attention(form, 2, 40, 2, 8) for form in FORMS),
    ttt(2, 40, 2, 8),
    layer(2, 40, 64, 2),
    *(head(1, 20, 8, likelihood=likelihood) for likelihood in (False, True)),
    *(convolution(2, 40, 6, taps, dtype=dtype, biased=True) for taps, dtype in ((4, HALF), (9, SINGLE))),
    *(scan(2, 40, 6, dtype=dtype, constant=constant) for dtype, constant in ((HALF, False), (SINGLE, True))),
    *(norm(20, 16, gated=gated) for gated in (False, True)),
    gates(20, 16),
    long(2, 40, 6),
]
PEAKS = Peaks(bytes=4e12, tensor=8e14, vector=5e13)


def draw() -> Draw:
    return Draw.from_seed(torch.seed() % 2**31, "cpu")


class TestCases:
    @pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
    def test_ours_agrees_with_float64_and_with_the_plain_way(self, case: Case) -> None:
        """In float32 for the head, whose other forms need a GPU."""
        error, wrong = check(case, draw())
        assert wrong is None
        assert error < max(case.tolerances)
        assert disagreement(case, case.plain, case.operands(draw(), 1)) < 1

    def test_names_are_unique_and_every_shape_is_checked(self) -> None:
        cases = bench.all_cases()
        assert len({case.name for case in cases}) == len(cases)
        assert all(case.target.of in ("best", *case.rivals, *case.own) for case in cases)
        assert all(case.rivals or not case.timed for case in cases)

    def test_a_check_takes_the_form_that_is_timed(self) -> None:
        """Some operations have another for few sequences."""
        pytest.importorskip("triton")
        from tests.kernels.absent_gpu import launches

        for case in bench.all_cases():
            if case.sizes in ("delta_rule", "linear_attention") or case.operation == "layer":
                timed, checked = launches(case), launches(replace(case, batch=case.checked))
                assert [kernel.__name__ for kernel, *_ in timed] == [kernel.__name__ for kernel, *_ in checked], (
                    case.name
                )

    def test_what_is_wrong_is_found(self) -> None:
        """A result that is off, one that is not all written, one that is another each time, a gradient that is off."""
        case = gates(20, 16, dtype=SINGLE)

        def unwritten(x: Tensor) -> Tensor:
            return torch.cat((case.ours(x)[1:], torch.empty(1, 16)))

        turns = count()

        def changing(x: Tensor) -> Tensor:
            return case.ours(x) * (1 + 5e-6 * (next(turns) % 2))

        def detached(x: Tensor) -> Tensor:
            y = case.ours(x)
            return y.detach() + 1.001 * (y - y.detach())

        words = ("result 0 is off", "result 0 is off by nan", "result 0 differs", "gradient 0 is off")
        for way, word in zip((lambda x: case.ours(x) * 1.001, unwritten, changing, detached), words, strict=True):
            wrong = check(replace(case, ours=way), draw())[1]
            assert wrong is not None
            assert word in wrong
            if way is not changing:
                assert not disagreement(case, way, case.operands(draw(), 1)) < 3


def times(both: float | None, forward: float = 0.1) -> Times:
    return Times(forward, both, 1.5, 4 * 10**9)


@pytest.mark.usefixtures("cuda")
class TestTimer:
    def test_operands_take_turns_and_a_call_is_what_counts(self) -> None:
        case, used = gates(20, 16), []

        def way(x: Tensor) -> Tensor:
            CALLS[0] += 1
            used.append(x.data_ptr())
            return case.ours(x)

        x, y = 20 * 32 * 2, 20 * 16 * 2  # bytes
        assert measure(case, way, draw()) == Times(1.0, 1.0, 0.5, (x + y) + (x + y + x))
        assert len(set(used)) == SETS
        assert used[-2 * SETS : -SETS] == used[-SETS:]

    def test_every_case_and_a_loss_without_a_backward_pass(self) -> None:
        for case in SMALL:
            found = measure(case, case.ours, draw())
            assert (found.both is None) == (case.operation == "linear_log_likelihood")


class TestRows:
    case = Case("a", "1 x 2", lambda draw, batch: (), abs, abs, rivals=dict.fromkeys((FLA, COMPILED), abs), flops=8e11)

    def cells(self, ours: Found, others: dict[str, Found]) -> dict[str, str]:
        names = rival_names([self.case])
        lines = [*header([self.case]).splitlines(), row(self.case, names, ours, others, PEAKS, 1e-3)]
        assert len({line.count("|") for line in lines}) == 1
        keys, _, values = ([part.strip() for part in line.strip("|").split("|")] for line in lines)
        return dict(zip(keys, values, strict=True))

    def test_times_floors_and_rates(self) -> None:
        found = self.cells(times(5.0), {FLA: times(10.0, 3.0), COMPILED: "no result within 120 s"})
        assert found["ours, ms"] == "0.1 / 5"
        assert found["floor: bytes"] == "1"
        assert found["floor: operations"] == "3"  # both passes: three times the forward pass
        assert (found["TB/s"], found["TFLOP/s"], found["GiB"]) == ("0.80", "480.0", "1.50")
        assert (found[FLA], found[COMPILED]) == ("3 / 10", "no result within 120 s")
        assert found["ours is faster by"] == f"2.00 x ({FLA})"
        assert found["target"] == f"1 x as fast as the best rival: met ({COMPILED} has not run)"

    def test_a_failure_of_ours_is_a_cell(self) -> None:
        found = self.cells("OutOfMemoryError", {FLA: times(10.0)})
        assert (found["ours, ms"], found[FLA], found["target"]) == ("OutOfMemoryError", "0.1 / 10", "")

    @pytest.mark.parametrize(
        ("target", "ours", "others", "wanted"),
        [
            (Target(2, FLA), 5.0, {FLA: times(10.0), COMPILED: times(1.0)}, f"2 x as fast as {FLA}: met"),
            (Target(2, FLA), 5.01, {FLA: times(10.0)}, f"2 x as fast as {FLA}: not met"),
            (Target(2, FLA), 5.0, {FLA: "no", COMPILED: times(9.0)}, f"2 x as fast as {FLA}: open, {FLA} has not run"),
            (Target(1), 5.0, {FLA: times(10.0), COMPILED: times(4.9)}, "1 x as fast as the best rival: not met"),
            (Target(1), 5.0, {}, "1 x as fast as the best rival: open, no rival has run"),
            (Target(1 / 1.15, "b"), 1.15, {"b": times(1.0)}, "at most 1.15 x the time of b: met"),
            (Target(1 / 1.15, "b"), 1.16, {"b": times(1.0)}, "at most 1.15 x the time of b: not met"),
        ],
    )
    def test_targets(self, target: Target, ours: float, others: dict[str, Found], wanted: str) -> None:
        assert verdict(replace(self.case, target=target), times(ours), others)[1] == wanted

    def test_without_a_backward_pass(self) -> None:
        assert verdict(self.case, times(None, 2.0), {FLA: times(None, 3.0)})[0] == f"1.50 x ({FLA})"
        assert self.cells(times(None, 2.0), {})["floor: operations"] == "1"


class TestRun:
    def cases(self) -> list[Case]:
        made = partial(Case, make=lambda draw, batch: (), ours=abs, plain=abs, rivals={FLA: lambda: abs})
        return [made("a", "1"), made("a", "2"), made("b", "1", own={"a": abs}), made("a", "3", timed=False)]

    def run(
        self, *, red: str = "", fails: str = "", rivals: str = "", end: float = 1e9, seconds: float = 0.0
    ) -> tuple[int, list[str], list[str]]:
        """Exit code, what was printed, and which rivals were asked; every question to the device takes `seconds`."""
        now, asked, printed = [0.0], [], []

        def pass_time() -> None:
            now[0] += seconds

        def checked(case: Case) -> tuple[float, str | None]:
            pass_time()
            return 1e-3, "result 0 is off by nan" if case.name == red else None

        def measured(case: Case, own: str | None) -> Times:
            pass_time()
            if case.name == fails:
                raise RuntimeError("out of | memory\nand more")
            return times(5.0)

        def ask(case: Case, rival: str, limit: float) -> Found:
            pass_time()
            asked.append(f"{case.name} {rival} {limit:.0f}")
            return times(8.0)

        code = run(
            self.cases(), Device(checked, measured, ask, PEAKS), rivals=lambda name: rivals in name,
            rival_seconds=120.0, end=end, clock=lambda: now[0], write=printed.append,
        )  # fmt: skip
        return code, printed, asked

    def test_checks_then_a_row_for_each_shape(self) -> None:
        code, printed, asked = self.run()
        assert code == 0
        lines = [line.split("|")[1].strip() for line in printed if line.startswith("| ")]
        assert lines == ["shape", "1", "2", "shape", "1"]
        assert "checks: 3, worst error 1.0e-03" in "\n".join(printed)
        assert asked == [f"a 1 {FLA} 120", f"a 2 {FLA} 120", f"b 1 {FLA} 120"]

    def test_no_time_of_an_operation_whose_check_is_red(self) -> None:
        code, printed, asked = self.run(red="a 3")
        text = "\n".join(printed)
        assert code == 1
        assert "- a 3: result 0 is off by nan" in text
        assert "**a: the check is red, so there are no times.**" in text
        assert asked == [f"b 1 {FLA} 120"]
        assert "| its check is red |" in text.split("### b")[1]
        assert text.count("0.1 / 5 |") == 1

    def test_a_failure_of_ours_is_told_and_the_rest_goes_on(self) -> None:
        code, printed, asked = self.run(fails="a 1")
        assert code == 1
        assert "| 1 | RuntimeError out of / memory | " in "\n".join(printed)
        assert len(asked) == 3

    def test_rivals_that_are_not_asked(self) -> None:
        code, printed, asked = self.run(rivals="compile")
        assert (code, asked) == (0, [])
        assert "best rival: open, no rival has run |" in "\n".join(printed)
        assert bench.arguments(["--no-rivals"]).rivals == []
        assert bench.arguments(["--rivals", "flash", "--seconds", "9"]).rivals == ["flash"]

    def test_what_no_time_is_left_for_is_named(self) -> None:
        """Three checks and one row take 50 s; the second row's rival gets what is left."""
        code, printed, asked = self.run(seconds=10.0, end=70.0)
        assert code == 0
        assert asked == [f"a 1 {FLA} 30", f"a 2 {FLA} 10"]
        assert printed[-1] == "\nNot begun for want of time: b 1."

    def test_an_operation_whose_checks_end_too_late_has_no_times(self) -> None:
        code, printed, asked = self.run(seconds=10.0, end=20.0)
        assert (code, asked) == (0, [])
        assert "checks: 2 of 3, so there are no times\n" in printed
        assert printed[-1] == "\nNot begun for want of time: a 1; a 2; b 1."

    def test_selection(self) -> None:
        names = [case.name for case in selected(self.cases(), ["a"], ["2"])]
        assert names == ["a 2", "a 3"]
        assert len(selected(self.cases(), [], [])) == 4
        beside = selected(self.cases(), ["b"], [])
        assert [(case.name, case.timed) for case in beside] == [
            ("a 1", False), ("a 2", False), ("a 3", False), ("b 1", True)
        ]  # fmt: skip
        with pytest.raises(ValueError, match="no operation c, expected some of: a; b"):
            selected(self.cases(), ["c"], [])

    def test_no_gpu(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert bench.main(["--only", "nothing"]) == 2
        assert "no operation nothing" in capsys.readouterr().err
        assert bench.main(["--list", "--only", "swiglu"]) == 0
        assert capsys.readouterr().out.startswith("swiglu 65536 x")
        if not torch.cuda.is_available():
            assert bench.main([]) == 2
            assert "needs a CUDA device" in capsys.readouterr().err


WORKER = """
import json, os, subprocess, sys, time
answers = os.fdopen(int(sys.argv[1]), "w")
print(json.dumps({}), file=answers, flush=True)
for line in sys.stdin:
    case, rival, seed = json.loads(line)
    print("noise on stdout", flush=True)
    if rival == "hangs":
        subprocess.Popen(["sleep", "1000"])
        time.sleep(1000)
    if rival == "crashes":
        sys.exit("illegal memory access | here")
    found = {"forward": 1.0, "both": seed, "gib": os.getpid(), "least_bytes": 4}
    print(json.dumps({"refusal": "no"} if rival == "refuses" else found), file=answers, flush=True)
"""


class TestRivals:
    @pytest.fixture
    def rivals(self) -> Iterator[Rivals]:
        made = Rivals([sys.executable, "-c", WORKER])
        yield made
        made.stop()

    def ask(self, rivals: Rivals, rival: str) -> Times | str:
        return rivals.ask("a 1", rival, seed=7, seconds=5.0 if rival != "hangs" else 0.5)

    def test_one_process_answers_all(self, rivals: Rivals) -> None:
        first, second = self.ask(rivals, "runs"), self.ask(rivals, "runs")
        assert isinstance(first, Times)
        assert first == second  # the process's id is in it
        assert first.both == 7
        assert self.ask(rivals, "refuses") == "no"

    @pytest.mark.parametrize(
        ("rival", "wanted"),
        [
            ("hangs", "no result within 0.5 s"),
            ("crashes", "its process ended with status 1: illegal memory access / here"),
        ],
    )
    def test_one_that_does_not_answer_is_ended_with_what_it_started(
        self, rivals: Rivals, rival: str, wanted: str
    ) -> None:
        self.ask(rivals, "runs")
        assert rivals.process is not None
        group = rivals.process.pid
        assert self.ask(rivals, rival) == wanted
        for _ in range(50):
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
        else:
            raise AssertionError("still there")
        assert isinstance(self.ask(rivals, "runs"), Times)

    def test_one_that_does_not_start(self) -> None:
        rivals = Rivals([sys.executable, "-c", "raise SystemExit('no GPU')"])
        assert self.ask(rivals, "runs") == "its process ended with status 1: no GPU"
