import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asiarch_hpc.config import EarlyStoppingConfig
from asiarch_hpc.search.early_stopping import loss_limit, loss_limits, pooled_sd, rung_steps, smoothed, window_steps

CONFIG = EarlyStoppingConfig(rungs=[0.5, 0.75], keep=0.5, margin=2.0, window=0.1, curves=4)


def curve(end: float, steps: int = 100, length: int | None = None) -> list[float]:
    return [end + 5.0 * (1 - step / steps) for step in range(1, (length or steps) + 1)]


BASELINES = [[curve(3.0), curve(3.1), curve(3.2)], [curve(2.9), curve(3.1)]]
DESIGNS = [curve(end) for end in (2.8, 3.0, 3.4, 3.6)]


def test_rungs_are_whole_steps_with_a_window_before_and_training_after() -> None:
    assert rung_steps(100, CONFIG) == [50, 75]
    assert rung_steps(3, EarlyStoppingConfig(rungs=[0.05, 0.5, 0.99], window=0.1)) == [2]
    assert rung_steps(100, EarlyStoppingConfig()) == []
    assert window_steps(3, CONFIG) == 1


def test_smoothing_needs_a_whole_window_of_finite_losses() -> None:
    assert smoothed([4.0, 2.0, 1.0, 9.0], 3, 2) == 1.5
    assert smoothed([4.0, 2.0], 3, 2) is None
    assert smoothed([4.0, math.nan, 1.0], 3, 2) is None


def test_a_limit_is_the_last_kept_design_plus_noise() -> None:
    limits = loss_limits(DESIGNS, [BASELINES[0][:1] * 2], steps=100, config=CONFIG)
    means = [sum(design[40:50]) / 10 for design in DESIGNS]
    assert limits[50] == pytest.approx(BASELINES[0][0][44] / 2 + BASELINES[0][0][45] / 2)  # 3.0: reference = second
    assert limits[50] == pytest.approx(sorted(means)[1])
    noise = pooled_sd([[3.0, 3.1, 3.2], [2.9, 3.1]])
    assert noise == pytest.approx(math.sqrt((2 * 0.01 + 0.02) / 3))
    wide = loss_limits(DESIGNS, BASELINES, steps=100, config=CONFIG)
    assert wide[75] == pytest.approx(sum(curve(3.1)[65:75]) / 10 + 2 * noise)  # the reference's 3.1 is above 3.0


def test_a_design_as_good_as_the_reference_is_never_stopped() -> None:
    good = [curve(1.0 + 0.01 * index) for index in range(20)]
    limits = loss_limits(good, BASELINES, steps=100, config=CONFIG)
    for step, limit in limits.items():
        assert (smoothed(curve(3.1), step, 10) or math.inf) < limit


def test_a_rung_without_enough_designs_or_noise_is_not_judged() -> None:
    stopped = [curve(3.6, length=60), curve(3.5, length=60)]
    assert set(loss_limits([*DESIGNS[:2], *stopped], BASELINES, steps=100, config=CONFIG)) == {50}
    assert loss_limits(DESIGNS[:3], BASELINES, steps=100, config=CONFIG) == {}
    assert loss_limits(DESIGNS, [BASELINES[0][:1]], steps=100, config=CONFIG) == {}
    assert loss_limits(DESIGNS, [], steps=100, config=CONFIG) == {}
    diverged = [[math.nan] * 100]
    assert loss_limits(DESIGNS[:3] + diverged, BASELINES, steps=100, config=CONFIG) == {}


@given(
    losses=st.lists(st.floats(1, 5), min_size=4, max_size=60),
    keep=st.floats(0.05, 1.0),
    reference=st.floats(1, 5),
    sd=st.floats(0, 1),
)
def test_at_least_the_kept_share_stays_below_the_limit(
    losses: list[float], keep: float, reference: float, sd: float
) -> None:
    config = EarlyStoppingConfig(keep=keep, margin=1.0, curves=1)
    limit = loss_limit(losses, reference, sd, config)
    assert limit is not None
    assert sum(loss <= limit for loss in losses) >= keep * len(losses)
    assert limit >= reference + sd
    random.Random(0).shuffle(losses)
    assert loss_limit(losses, reference, sd, config) == limit
