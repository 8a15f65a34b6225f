import math
import pickle
import random
from collections.abc import Callable, Sequence

import pytest

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.errors import TrainingError
from asiarch_hpc.training.monitor import Monitor, Peers, TrainingStoppedError


def feed(monitor: Monitor, **numbers: float) -> None:
    monitor.check(1, **{"loss": 3.0, "gradient_norm": 1.0, "seconds": 0.1, **numbers})


@pytest.fixture
def monitor() -> Monitor:
    return Monitor(loss_limit=20.0, step_seconds_limit=1.0)


@pytest.mark.parametrize(
    ("numbers", "cause"),
    [
        ({"loss": math.nan}, "non_finite_loss"),
        ({"loss": math.inf}, "non_finite_loss"),
        ({"gradient_norm": math.nan}, "non_finite_loss"),
        ({"gradient_norm": math.inf}, "non_finite_loss"),
        ({"loss": 20.0}, "diverged"),
        ({"loss": 1e30}, "diverged"),
    ],
)
def test_bad_numbers_stop_at_once(monitor: Monitor, numbers: dict[str, float], cause: str) -> None:
    with pytest.raises(TrainingStoppedError) as stopped:
        feed(monitor, **numbers)
    assert stopped.value.cause == cause
    assert isinstance(stopped.value, TrainingError)


def test_a_limit_that_is_not_a_number_stops_rather_than_lets_through() -> None:
    with pytest.raises(TrainingStoppedError):
        feed(Monitor(loss_limit=math.nan, step_seconds_limit=1.0))


def test_five_slow_steps_stop_but_the_first_step_and_single_ones_do_not(monitor: Monitor) -> None:
    feed(monitor, seconds=500.0)
    for seconds in (9.0, 0.1, 9.0, 0.1, 0.1, 0.1, 9.0, 0.1, 9.0):
        feed(monitor, seconds=seconds)
    feed(monitor, seconds=0.1)  # the last five are now 0.1, 9, 0.1, 9, 0.1: one more slow step turns the median
    with pytest.raises(TrainingStoppedError, match=r"median of the last 5 steps is 9\.00 s") as stopped:
        feed(monitor, seconds=9.0)
    assert stopped.value.cause == "too_slow"


def test_the_cause_survives_a_process_boundary() -> None:
    again = pickle.loads(pickle.dumps(TrainingStoppedError("diverged", "step 3: …")))
    assert (again.cause, str(again)) == ("diverged", "step 3: …")


def beside(losses: list[float], *, seconds: float = 0.1, device: str = "cpu") -> int:
    """Steps that a training with these losses is let go beside a baseline that falls from 6 to 4 nats."""
    baseline = [6.0 - 2.0 * step / 100 for step in range(100)]
    peers = Peers(baseline, step_seconds=0.1, device="cpu")
    monitor = Monitor(
        loss_limit=20.0, step_seconds_limit=9.0, peers=peers, leak_margin=0.3, slow_multiple=3.0, device=device
    )
    for step, loss in enumerate(losses, 1):
        monitor.check(step, loss=loss, gradient_norm=1.0, seconds=seconds)
    return len(losses)


def test_a_loss_far_below_the_baselines_is_a_leak() -> None:
    with pytest.raises(TrainingStoppedError, match="sees the tokens that it predicts") as stopped:
        beside([3.5] * 100)
    assert stopped.value.cause == "leak"


def test_a_better_design_and_a_single_lucky_batch_are_none() -> None:
    assert beside([5.0 - 2.0 * step / 100 for step in range(100)]) == 100
    assert beside([5.0] * 40 + [0.5] + [5.0] * 40) == 81


def test_three_times_the_baselines_step_is_too_slow() -> None:
    with pytest.raises(TrainingStoppedError, match=r"baseline's 0\.1000 s") as stopped:
        beside([5.0] * 100, seconds=0.31)
    assert stopped.value.cause == "too_slow"
    assert beside([5.0] * 100, seconds=0.29) == 100


def test_other_hardware_is_not_compared() -> None:
    assert beside([5.0] * 100, seconds=0.31, device="another") == 100


def test_a_loss_that_is_not_below_its_rung_stops_there_and_nowhere_else() -> None:
    def train(losses: list[float], first: int = 1) -> int:
        peers = Peers(losses=[], step_seconds=1.0, limits={4: 2.0, 8: 1.5}, window=2)
        monitor = Monitor(loss_limit=20.0, step_seconds_limit=60.0, peers=peers)
        for step, loss in enumerate(losses, first):
            try:
                monitor.check(step, loss=loss, gradient_norm=1.0, seconds=0.1)
            except TrainingStoppedError as stopped:
                return step if stopped.cause == "behind" else -1
        return 0

    assert train([9, 9, 2.5, 1.4, 9, 9, 1.4, 1.5, 9]) == 0  # means 1.95 and 1.45
    assert train([1, 1, 2.5, 1.5]) == 4  # 2.0 is not below
    assert train([1, 1, 1, 1, 1, 1, 2, 1]) == 8
    assert train([9], first=4) == 0  # continued right before the rung: no whole window
    assert train([9, 9], first=3) == 4


def let_go(losses: Sequence[float], norms: Sequence[float] = ()) -> int:
    """Steps of a training, with the limits that are the default, that pass before it is stopped as diverged."""
    scale = ScaleConfig()
    monitor = Monitor(
        loss_limit=scale.loss_limit,
        step_seconds_limit=9.0,
        loss_rise_limit=scale.loss_rise_limit,
        gradient_limit=scale.gradient_limit,
    )
    for step, (loss, norm) in enumerate(zip(losses, norms or [1.0] * len(losses), strict=True), 1):
        try:
            monitor.check(step, loss=loss, gradient_norm=norm, seconds=0.1)
        except TrainingStoppedError as stopped:
            return step - 1 if stopped.cause == "diverged" else -1
    return len(losses)


def healthy(steps: int, *, noise: float, seed: int = 0) -> list[float]:
    """From 7 nats down to 3, as the laptop scale's trainings do; single batches there differ by 0.3 (deviation)."""
    rng = random.Random(seed)
    return [3.0 + 4.0 * math.exp(-step / 60) + rng.gauss(0.0, noise) for step in range(steps)]


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_healthy_training_is_let_go(noise: float, seed: int) -> None:
    losses = healthy(400, noise=noise, seed=seed)
    losses[3:18] = [12.0] * 15  # while the learning rate warms up
    losses[200:209] = [14.0, 13.0, 12.0, 11.0, 9.0, 8.0, 7.0, 6.0, 5.0]  # one spike that passes
    losses[300] = 19.0
    norms = [abs(random.Random(seed).gauss(1.0, 0.5))] * 400
    norms[0] = norms[100] = norms[300] = 1e9
    norms[200:202] = [1e6, 1e30]
    assert let_go(losses, norms) == 400


@pytest.mark.parametrize(
    "exploded",
    [
        lambda step: 19.9,
        lambda step: 6.7,
        lambda step: min(3.5 + 0.1 * step, 12.0),  # slowly
        lambda step: 15.0 if step % 3 else 3.0,  # back and forth
    ],
)
def test_a_loss_that_stays_far_above_what_it_was_has_exploded(exploded: Callable[[int], float]) -> None:
    losses = [*healthy(300, noise=0.3), *(exploded(step) for step in range(100))]
    assert 300 < let_go(losses) < 350


def test_a_rise_within_the_limit_is_none() -> None:
    assert let_go([*healthy(300, noise=0.0), *[5.9] * 100]) == 400


@pytest.mark.parametrize("norm", [1e4, 1e30])
def test_gradients_that_stay_huge_stop_and_those_below_the_limit_do_not(norm: float) -> None:
    losses = healthy(50, noise=0.3)
    assert let_go(losses, [norm] * 50) == 4
    assert let_go(losses, [1.0] * 20 + [norm, 1.0] * 2 + [norm, norm] + [1.0] * 24) == 24
    assert let_go(losses, [9999.0] * 50) == 50


def test_limits_of_zero_are_none() -> None:
    monitor = Monitor(loss_limit=1e9, step_seconds_limit=9.0, loss_rise_limit=0.0, gradient_limit=0.0)
    for step in range(100):
        monitor.check(step, loss=3.0 if step < 50 else 1e6, gradient_norm=1e30, seconds=0.1)
