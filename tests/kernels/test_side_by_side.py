"""The autotuner of rivals, on a device that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from tests.kernels.absent_gpu import absent_driver
from tests.kernels.side_by_side import compiled_side_by_side

timed: list[int] = []


def time_none(call: Callable[[], object], quantiles: tuple[float, ...]) -> list[float]:
    """Takes the place of running a candidate: how many are compiled by then; the second one is the fastest."""
    timed.append(len(doubled.fn.device_caches["sm_90"][0]))
    return [0.5 if len(timed) == 2 else 1.0] * 3


@triton.autotune([triton.Config({"BLOCK": block}) for block in (16, 32, 48, 64)], key=["n"], do_bench=time_none)
@triton.jit
def doubled(x_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x_ptr + at, 2 * tl.load(x_ptr + at, mask=at < n), mask=at < n)


@pytest.mark.parametrize(("together", "compiled_before"), [(True, [3, 3, 3, 3]), (False, [0, 0, 0, 0])])
def test_candidates_are_compiled_before_the_first_is_timed(
    together: bool, compiled_before: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, whose tile is no power of two, cannot be compiled; alone, each would be compiled by its timing."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    timed.clear()
    doubled.cache.clear()
    doubled.fn.device_caches.clear()
    with absent_driver(90):
        arguments = (torch.zeros(64), 64)
        if together:
            with compiled_side_by_side(2):
                doubled.run(*arguments, grid=(1,), warmup=True)
        else:
            doubled.run(*arguments, grid=(1,), warmup=True)
    assert timed == compiled_before
    assert doubled.best_config.kwargs == {"BLOCK": 32}
