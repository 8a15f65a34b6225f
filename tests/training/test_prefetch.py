import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from asiarch_hpc.training.data import Batch, Batches
from asiarch_hpc.training.documents import Documents
from asiarch_hpc.training.prefetch import Prefetcher


@pytest.fixture
def make_batches() -> Callable[[], Batches]:
    lengths = np.random.default_rng(0).integers(2, 60, 40)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    tokens = np.arange(lengths.sum(), dtype=np.uint16)
    tokens[offsets[:-1]] = 0  # the separator
    documents = Documents([tokens], offsets)
    return lambda: Batches(documents, length=8, batch_size=6, seed=3, separator=0, window=20)


def same(a: Batch, b: Batch) -> bool:
    tensors = all(getattr(a, name).equal(getattr(b, name)) for name in ("inputs", "targets", "documents"))
    return tensors and (a.tokens, a.global_tokens) == (b.tokens, b.global_tokens)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 4])
def test_the_same_batches_in_the_same_order(make_batches: Callable[[], Batches], depth: int) -> None:
    plain = make_batches()
    with Prefetcher(make_batches(), first=5, stop=60, depth=depth, rank=1, world=2) as ahead:
        for step in range(5, 60):
            assert same(ahead.batch(step), plain.batch(step, rank=1, world=2))
    assert not threads()


def test_no_more_than_the_depth_is_prepared(make_batches: Callable[[], Batches], monkeypatch: Any) -> None:
    batches = make_batches()
    prepared: list[int] = []
    third = threading.Event()
    inner = batches.batch

    def noted(step: int, **share: int) -> Batch:
        prepared.append(step)
        if step == 3:
            third.set()
        return inner(step, **share)

    monkeypatch.setattr(batches, "batch", noted)
    with Prefetcher(batches, first=0, stop=1000, depth=3) as ahead:
        ahead.batch(0)
        assert third.wait(20)  # a place became free
    assert prepared == [0, 1, 2, 3]  # close waits for the thread, so nothing comes later


def test_steps_come_in_order_and_end(make_batches: Callable[[], Batches]) -> None:
    with Prefetcher(make_batches(), first=0, stop=2, depth=2) as ahead:
        with pytest.raises(AssertionError, match="step 1"):
            ahead.batch(1)
        ahead.batch(0)
        ahead.batch(1)
        with pytest.raises(AssertionError, match="up to 2"):
            ahead.batch(2)


def test_what_goes_wrong_is_raised_where_the_batch_is_asked_for(
    make_batches: Callable[[], Batches], monkeypatch: Any
) -> None:
    batches = make_batches()
    inner = batches.batch

    def failing(step: int, **share: int) -> Batch:
        if step == 2:
            raise OSError("the disk is gone")
        return inner(step, **share)

    monkeypatch.setattr(batches, "batch", failing)
    with Prefetcher(batches, first=0, stop=9, depth=4) as ahead:
        ahead.batch(0)
        ahead.batch(1)
        for _ in range(2):
            with pytest.raises(OSError, match="disk is gone"):
                ahead.batch(2)
    assert not threads()


def test_closing_needs_no_consumer(make_batches: Callable[[], Batches]) -> None:
    ahead = Prefetcher(make_batches(), first=0, stop=10**9, depth=2)
    ahead.close()
    ahead.close()
    assert not threads()


@pytest.mark.gpu
def test_pinned(make_batches: Callable[[], Batches]) -> None:
    with Prefetcher(make_batches(), first=0, stop=2, depth=2, pin=True) as ahead:
        batch = ahead.batch(0)
        assert batch.inputs.is_pinned()
        assert same(batch, make_batches().batch(0))
