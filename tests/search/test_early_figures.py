"""The figures of `make bench ARGS=early`, on curves of which the answer is known."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from asiarch_hpc.config import EarlyStoppingConfig, to_dict
from asiarch_hpc.importers.published import Curve
from asiarch_hpc.store.curves import write_curves
from asiarch_hpc.store.files import write_json
from asiarch_hpc.store.layout import TrialLayout
from tests.controller.simulated import config_of, drive
from tests.search.early_figures import Source, at_rungs, judge, of_run, references, resampled_curve, setting

CONFIG = EarlyStoppingConfig(rungs=[0.5], keep=0.5, margin=0.0, window=0.1, curves=10)
RANKS = list(range(40))


def source(halfway: list[float], final: list[float], baselines: list[list[list[float]]] | None = None) -> Source:
    curves = [[loss] * 10 for loss in halfway]
    return Source("made", 10, curves, final, [-loss for loss in final], baselines or [])


def judged(made: Source, order: list[int] = RANKS) -> tuple[float, float, float, float]:
    found = judge(made, CONFIG, at_rungs(made, CONFIG), references(made, CONFIG), order)
    return found.stopped, found.saved, found.lost_loss, found.lost_score


def test_what_ends_as_it_stood_halfway_loses_no_best_and_saves_half_of_what_is_stopped() -> None:
    ranks = [float(rank) for rank in RANKS]
    # The first batch is never judged; of the later ones all are behind.
    assert judged(source(ranks, ranks)) == (0.75, 0.375, 0.0, 0.0)
    # The best come last: none is behind those before.
    assert judged(source(ranks, ranks), RANKS[::-1]) == (0.0, 0.0, 0.0, 0.0)


def test_designs_that_catch_up_are_lost() -> None:
    halfway = [float(rank) for rank in RANKS]
    final = [-rank for rank in halfway]
    assert judged(source(halfway, final)) == (0.75, 0.375, 1.0, 1.0)


def test_a_design_that_is_not_behind_the_reference_is_kept() -> None:
    ranks = [float(rank) for rank in RANKS]
    assert judged(source(ranks, ranks, [[[100.0] * 10, [100.0] * 10]]))[0] == 0.0


def test_time_is_that_of_the_steps_that_a_stopped_design_is_spared() -> None:
    ranks = [float(rank) for rank in RANKS]
    # The first ten are never judged. All others are stopped halfway, and their second halves take longer by rank.
    seconds = [[1.0] * 5 + [float(rank)] * 5 for rank in RANKS]
    made = replace(source(ranks, ranks), seconds=seconds)
    found = judge(made, CONFIG, at_rungs(made, CONFIG), references(made, CONFIG), RANKS)
    assert found.saved == 0.375
    assert found.saved_time == pytest.approx(sum(range(10, 40)) / (40 + sum(range(40))))
    # In another order none is behind; and what stands twice counts twice.
    assert judge(made, CONFIG, at_rungs(made, CONFIG), references(made, CONFIG), RANKS[::-1]).saved_time == 0.0
    twice = [*range(10), *[39] * 10]
    found = judge(made, CONFIG, at_rungs(made, CONFIG), references(made, CONFIG), twice)
    assert found.saved_time == pytest.approx(10 * 39 / (20 + sum(range(10)) + 10 * 39))


def test_curves_without_times_have_no_saved_time(capsys: pytest.CaptureFixture[str]) -> None:
    ranks = [float(rank) for rank in RANKS]
    made = source(ranks, ranks)
    assert math.isnan(judge(made, CONFIG, at_rungs(made, CONFIG), references(made, CONFIG), RANKS).saved_time)
    setting(made, CONFIG)
    assert "| - | 0%" in capsys.readouterr().out


def test_a_run_tells_its_losses_and_times(tmp_path: Path) -> None:
    controller = drive(tmp_path / "run", config_of())
    for path in controller.layout.experiments.glob("*/*/trials/*/trial.json"):
        layout = TrialLayout(path.parent)
        rows = [{"loss": 5.0 - step, "step_seconds": 0.5 + step} for step in range(3)]
        write_curves(rows, layout.curves)
    write_json(controller.layout.record, {"uid": "made", "config": to_dict(controller.config)})
    found = of_run(controller.layout)
    assert found.curves == [[5.0, 4.0, 3.0]] * len(found.final)
    assert found.seconds == [[0.5, 1.5, 2.5]] * len(found.final)


def test_sparse_curves_are_read_at_their_last_known_loss() -> None:
    curve = Curve(steps=(1.0, 50.0, 100.0), losses=(9.0, 4.0, 3.0))
    assert resampled_curve(curve, 4) == [9.0, 4.0, 4.0, 3.0]
