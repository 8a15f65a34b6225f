"""The figures of `make bench ARGS=early`, on curves of which the answer is known."""

from asiarch_hpc.config import EarlyStoppingConfig
from asiarch_hpc.importers.published import Curve
from tests.search.early_figures import Source, at_rungs, judge, references, resampled_curve

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


def test_sparse_curves_are_read_at_their_last_known_loss() -> None:
    curve = Curve(steps=(1.0, 50.0, 100.0), losses=(9.0, 4.0, 3.0))
    assert resampled_curve(curve, 4) == [9.0, 4.0, 4.0, 3.0]
