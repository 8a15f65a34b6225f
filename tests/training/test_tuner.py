import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.errors import DesignError
from asiarch_hpc.training.tuner import match_depth_first, match_size


@given(
    quadratic=st.floats(0.5, 40),
    linear=st.floats(0, 300),
    reference=st.sampled_from([32, 64, 100]),
    depth=st.integers(1, 6),
)
@settings(deadline=None, max_examples=80)
def test_nearest_width_of_the_grid_wins(quadratic: float, linear: float, reference: int, depth: int) -> None:
    target = depth * (12 * reference**2 + 20 * reference)

    def count(dim: int, blocks: int) -> int:
        return blocks * int(quadratic * dim * dim + linear * dim)

    dim, blocks = match_size(
        count, target=target, reference_dim=reference, reference_depth=depth, dim_step=8, tolerance=10.0
    )
    widths = range(reference % 8 or 8, 8 * reference + 1, 8)
    assert blocks == depth
    best = min(abs(math.log(count(d, depth) / target)) for d in widths)
    assert abs(math.log(count(dim, depth) / target)) == pytest.approx(best)


def test_the_baseline_itself_keeps_its_size() -> None:
    assert match_size(
        lambda d, n: 12 * n * d * d,
        target=12 * 3 * 64**2,
        reference_dim=64,
        reference_depth=3,
        dim_step=8,
        tolerance=0.2,
    ) == (64, 3)


def test_ties_go_to_the_baseline_width() -> None:
    # The size does not depend on the width at all.
    assert match_size(
        lambda d, n: 1000 * n, target=3100, reference_dim=64, reference_depth=3, dim_step=8, tolerance=0.2
    ) == (64, 3)


def test_depth_changes_only_where_no_width_fits() -> None:
    found = match_size(
        lambda d, n: 1000 * n, target=5000, reference_dim=64, reference_depth=3, dim_step=8, tolerance=0.1
    )
    assert found == (64, 5)


def test_widths_that_the_design_refuses_are_passed_over() -> None:
    def count(dim: int, depth: int) -> int:
        if dim % 16:
            raise DesignError(f"dim={dim}: a multiple of 16 was expected")
        return 20 * depth * dim * dim

    dim, depth = match_size(
        count, target=12 * 3 * 64**2, reference_dim=64, reference_depth=3, dim_step=8, tolerance=0.3
    )
    assert (dim, depth) == (48, 3)


def test_no_match_names_the_nearest() -> None:
    with pytest.raises(DesignError, match=r"within 20%: the nearest is 600 at dim=64, depth=6"):
        match_size(lambda d, n: 100 * n, target=10**6, reference_dim=64, reference_depth=3, dim_step=8, tolerance=0.2)


def test_a_design_that_builds_nowhere_gives_its_own_error() -> None:
    def count(dim: int, depth: int) -> int:
        raise DesignError("never")

    with pytest.raises(DesignError, match="never"):
        match_size(count, target=10, reference_dim=16, reference_depth=1, dim_step=8, tolerance=0.2)


@pytest.mark.parametrize(("size", "expected"), [(12, (64, 3)), (24, (56, 2)), (5, (64, 7)), (100, (40, 1))])
def test_depth_first_keeps_the_width_where_a_depth_fits(size: int, expected: tuple[int, int]) -> None:
    # Genesys's order (B.1.4). 24: one block has two thirds of the target, two have four thirds, neither within 20 %.
    found = match_depth_first(
        lambda d, n: size * n * d * d,
        target=12 * 3 * 64**2,
        reference_dim=64,
        reference_depth=3,
        dim_step=8,
        tolerance=0.2,
    )
    assert found == expected


def test_depth_first_gives_up_on_a_design_without_parameters() -> None:
    with pytest.raises(DesignError, match=r"the nearest is 24 at dim=64, depth=24"):
        match_depth_first(lambda d, n: n, target=10**6, reference_dim=64, reference_depth=3, dim_step=8, tolerance=0.2)
