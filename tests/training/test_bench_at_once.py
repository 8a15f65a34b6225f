"""The benchmark of trainings that share a device, on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.training import bench_at_once
from tests.training.bench_at_once import tokens_per_second


def test_rates_of_several_add_up_within_the_interval() -> None:
    fast = [(0.0, 900), (10.0, 100), (11.0, 50), (12.0, 50), (30.0, 900)]
    slow = [(9.0, 900), (12.0, 7), (14.0, 8)]
    assert tokens_per_second([fast, slow], 9.5, 20.0) == pytest.approx(100 / 2 + 8 / 2)
    assert tokens_per_second([fast, [(10.0, 5)]], 9.5, 20.0) == pytest.approx(50)


def test_two_trainings_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_at_once", "--device", "cpu"])
    assert bench_at_once.together("tiny", 2, 1.5, tmp_path) > 0
    assert len(list(tmp_path.glob("tiny-2-*"))) == 2


def test_a_training_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_at_once", "--device", "cpu", "--design", "no such design"])
    with pytest.raises(SystemExit, match="tiny, 2 at once: not all have made 3 steps"):
        bench_at_once.together("tiny", 2, 1.5, tmp_path)
