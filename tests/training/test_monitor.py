import math
import pickle

import pytest

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
