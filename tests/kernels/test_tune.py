"""The search for sizes of kernels, with a table of costs in place of a GPU, and the table that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.configurations import TABLE, choose, find, read_table
from kernels.swiglu import swiglu
from tests.kernels import tune as tuner
from tests.kernels.bench_case import Case, Draw
from tests.kernels.conftest import CALLS
from tests.kernels.tune import (
    Cost,
    Task,
    around,
    changed,
    difference,
    search,
    tasks,
    text_of,
    tune,
    value_of,
    with_rule,
)

START = {"tile": 32, "states": {"warps": 1}}
SPACE = {"tile": (16, 32, 64), "states.warps": (1, 2, 4, 8)}
SWIGLU = Case("swiglu", "1 x 2", lambda draw, batch: (draw.normal(batch, 2),), swiglu, swiglu, sizes="swiglu")


def never() -> bool:
    return False


class TestSearch:
    def test_one_entry_at_a_time_until_nothing_helps(self) -> None:
        """Tiles of 64 are better only once there are four warps, so a second round finds them."""
        tried = []

        def cost(configuration: dict[str, Any]) -> float | None:
            tried.append(json.dumps(configuration))
            tile, warps = configuration["tile"], configuration["states"]["warps"]
            return {1: 1.0, 2: 0.9, 4: 0.8, 8: 1.2}[warps] - (0.3 if tile == 64 and warps == 4 else 0.0)

        assert search(START, SPACE, cost, never) == {"tile": 64, "states": {"warps": 4}}
        assert len(tried) == len(set(tried))
        assert START == {"tile": 32, "states": {"warps": 1}}

    def test_what_is_wrong_or_hardly_faster_is_passed_over(self) -> None:
        costs = {16: None, 32: 1.0, 64: 0.99}
        assert search(START, {"tile": (16, 32, 64)}, lambda c: costs[c["tile"]], never) == START

    def test_an_entry_that_only_one_has_is_told(self) -> None:
        space = {"tile": (16, 32), "states.warps": (1, 2), "states.registers": (None, 128)}
        capped = {"tile": 32, "states": {"warps": 2, "registers": 128}}
        assert difference(START, capped, space) == "states.warps 2, states.registers 128"
        assert difference(capped, START, space) == "states.warps 1, states.registers None"
        assert difference(START, START, space) == ""

    def test_nothing_after_the_time_is_up(self) -> None:
        answers = iter([False, True])
        best = search(START, SPACE, lambda c: 1.0 / c["tile"], lambda: next(answers))
        assert best == START  # of one candidate, 16, which is slower

    def test_rounds_are_prepared_and_the_same_kernels_are_tried_once(self) -> None:
        """Tiles above 32 are all the same here; of two rounds, the second begins from what the first has found."""
        prepared, tried, told = [], [], []

        def cost(configuration: dict[str, Any]) -> float | None:
            tried.append(configuration["tile"])
            return 1.0 / configuration["tile"]

        best = search(
            START, {"tile": (16, 32, 64, 128)}, cost, never, prepare=lambda these: prepared.append(len(these)),
            identity=lambda c: min(c["tile"], 64), better=lambda c, share: told.append((c["tile"], share)),
        )  # fmt: skip
        assert best["tile"] == 64
        assert (tried, prepared, told) == ([32, 16, 64], [4, 4], [(64, 0.5)])

    def test_a_start_that_is_wrong(self) -> None:
        with pytest.raises(ValueError, match="the table's own configuration is wrong"):
            search(START, SPACE, lambda c: None, never)

    def test_entries_of_entries(self) -> None:
        assert changed(START, "states.warps", 8) == {"tile": 32, "states": {"warps": 8}}
        assert value_of(START, "states.warps") == 1
        assert value_of(START, "states.registers") is None


@pytest.mark.parametrize(
    ("size", "wanted"), [(0, [0, 0]), (1, [1, 1]), (2, [2, 2]), (3, [3, 4]), (64, [33, 64]), (680, [513, 1024])]
)
def test_ranges_between_powers_of_two(size: int, wanted: list[int]) -> None:
    assert around({"width": size}) == {"width": wanted}


def test_the_shipped_table_is_as_the_tuner_writes_it() -> None:
    assert text_of(read_table()) == TABLE.read_text()


def test_a_rule_counts_before_the_others_and_replaces_its_like() -> None:
    shapes = {"width": [33, 64]}
    table = {"default": {"a": [{"shapes": {}, "configuration": {"n": 0}}]}}
    for n in (1, 2):
        table = with_rule(table, "sm_90", "a", {"shapes": shapes, "configuration": {"n": n}})
    table = with_rule(table, "sm_90", "a", {"shapes": {"width": [1, 32]}, "configuration": {"n": 3}})
    assert len(table["sm_90"]["a"]) == 2
    assert [find(table, "a", "sm_90", {"width": width})["n"] for width in (20, 40, 70)] == [3, 2, 0]


def test_cases_that_ask_for_the_same_sizes_are_tuned_together() -> None:
    shapes = {"x": {"width": 64}, "y": {"width": 64}, "z": {"width": 32}}
    cases = [Case("swiglu", name, SWIGLU.make, swiglu, swiglu, sizes="swiglu") for name in "xyz"]
    found = tasks(cases, lambda case: [shapes[case.shape]] * 2)
    assert [[case.shape for case in task.cases] for task in found] == [["x", "y"], ["z"]]
    assert found[0].shapes == ((("width", 64),),)


class TestWritten:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        copy = tmp_path / "configurations.json"
        copy.write_text(TABLE.read_text())
        return copy

    def tuned(self, path: Path, fast: int, share: float) -> list[str]:
        pytest.importorskip("triton")
        return self.tuned_by(path, lambda configuration: share if configuration["elements"] == fast else 1.0)

    def tuned_by(self, path: Path, cost: Cost, out_of_time: Callable[[], bool] = never) -> list[str]:
        said: list[str] = []
        shape = (("bits", 16), ("width", 680))
        tune(
            Task("swiglu", (shape,), (SWIGLU,)), path, "sm_120", cost, measured={"device": "a GPU"},
            out_of_time=out_of_time, say=said.append,
        )  # fmt: skip
        return said

    def test_a_search_that_time_cut_short_says_so(self, path: Path) -> None:
        tried = count()
        assert self.tuned_by(path, lambda configuration: 1.0)[-1].endswith("nothing faster than what the table has")
        said = self.tuned_by(path, lambda configuration: 1.0, lambda: next(tried) == 2)
        assert said[-1].endswith("what the table has, of what was tried before time was up")

    def test_what_is_faster_is_written_for_its_device_and_range_only(self, path: Path) -> None:
        before = read_table(path)
        said = self.tuned(path, 4096, 0.5)
        assert said[-1] == "swiglu [{'bits': 16, 'width': 680}]: 0.500 of the time with elements 4096"
        table = read_table(path)
        shape = {"bits": 16, "width": 1000}
        assert find(table, "swiglu", "sm_120", shape)["elements"] == 4096
        assert find(table, "swiglu", "sm_120", {"bits": 16, "width": 1025})["elements"] == 2048
        assert find(table, "swiglu", "sm_90", shape)["elements"] == 2048
        [rule] = table.pop("sm_120")["swiglu"]
        assert rule["measured"] == {"device": "a GPU", "cases": ["swiglu 1 x 2"], "share_of_time": 0.5}
        assert table == before
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_what_is_not_faster_is_not_written(self, path: Path) -> None:
        assert self.tuned(path, 2048, 1.0)[-1].endswith("nothing faster than what the table has")
        assert path.read_text() == TABLE.read_text()

    def test_what_is_faster_is_kept_where_a_later_candidate_ends_the_process(self, path: Path) -> None:
        def cost(configuration: dict[str, Any]) -> float:
            if configuration["warps"] != 4:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return {2048: 1.0, 4096: 0.5}.get(configuration["elements"], 2.0)

        with pytest.raises(RuntimeError, match="illegal memory access"):
            self.tuned_by(path, cost)
        [rule] = read_table(path)["sm_120"]["swiglu"]
        assert rule["configuration"]["elements"] == 4096
        assert rule["measured"]["share_of_time"] == 0.5

    def test_what_is_not_faster_when_it_is_timed_again_is_not_kept(self, path: Path) -> None:
        turns = count()

        def cost(configuration: dict[str, Any]) -> float:
            return 0.5 if configuration["elements"] == 4096 and next(turns) == 0 else 1.0

        self.tuned_by(path, cost)
        assert path.read_text() == TABLE.read_text()

    def test_a_table_that_cannot_be_written_stays(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(tuner.os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            self.tuned(path, 4096, 0.5)
        assert path.read_text() == TABLE.read_text()


def test_candidates_are_checked_before_they_are_timed(cuda: None) -> None:
    """One that is right, one that is wrong, one that does not run; times are in units of the first one's."""
    calls_of_each = {2048: 2, 1024: 3, 4096: 1, 512: 1}

    def way(x: Tensor) -> Tensor:
        elements = choose("swiglu", dict, x.device, bits=16, width=x.shape[1])["elements"]
        CALLS[0] += calls_of_each[elements]
        if elements == 512:
            raise RuntimeError("out of resources: shared memory\nmore")
        return swiglu(x) * (1.1 if elements == 4096 else 1.0)

    case = Case("swiglu", "4 x 6", lambda draw, batch: (draw.normal(4, 6),), way, swiglu, sizes="swiglu")
    draw, said = Draw.from_seed(0, "cpu"), list[str]()
    [task] = tasks([case], lambda case: tuner.asked_shapes(case, draw))
    assert task.shapes == ((("bits", 16), ("width", 6)),)
    start = {"elements": 2048}
    cost = tuner.cost_on_this_gpu(task, start, draw, said.append, lambda configuration: None)
    assert [cost({"elements": elements}) for elements in (2048, 1024, 4096, 512)] == [1.0, 1.5, None, None]
    assert said[::2] == ["  as in the table", "  elements 1024", "  elements 4096", "  elements 512"]
    assert said[1::2] == [
        "    1.000 of the first one's time",
        "    1.500 of the first one's time",
        "    passed over: result 0 is off by 1.0e-01, at most 1e-02 allowed",
        "    passed over: RuntimeError out of resources: shared memory",
    ]


def test_arguments_and_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuner.main(["swigloo"]) == 2
    assert "no table of swigloo, expected some of: delta_rule" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert tuner.main([]) == 2
        assert "needs a CUDA device" in capsys.readouterr().err
