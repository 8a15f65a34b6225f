"""Counting that remembers shapes gives the numbers of counting that asks torch each time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from asiarch_hpc.config import GateConfig, ScaleConfig
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.library import library
from asiarch_hpc.designs.tree import random_tree
from asiarch_hpc.gate.checks import measure
from asiarch_hpc.gate.checks.measure import Meter, StepCost
from asiarch_hpc.gate.checks.shapes import Recipe, key_of, recipe_of
from asiarch_hpc.training.backbone import build_model
from tests.gate.toys import reference_model

SCALE, VOCAB = ScaleConfig(), 64


def steps(source: str) -> list[StepCost]:
    meter = Meter(build_model(source, vocab=VOCAB, scale=SCALE, dim=32, depth=2, seed=0), VOCAB, GateConfig())
    return [meter.step(batch, length) for batch, length in ((1, 64), (3, 64), (1, 200))]


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_random_trees_cost_the_same(seed: int) -> None:
    reference_model()  # what the first count of a process imports keeps tensors for longer
    source = compose(random_tree(random.Random(seed), library(), name="tree", max_height=3))
    remembered = steps(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "key_of", lambda func, args, kwargs: None)
        assert steps(source) == remembered


class Remembering(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Answers from memory where it can; counts how often."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.recipes: dict[Any, Recipe] = {}
        self.hits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        key = key_of(func, args, kwargs or {})
        if key in self.recipes:
            self.hits += 1
            return self.recipes[key].make()[0]
        out = func(*args, **(kwargs or {}))
        recipe = recipe_of(out, [arg for arg in args if isinstance(arg, Tensor)], None)
        if key is not None and recipe is not None:
            self.recipes[key] = recipe
        return out


def meta(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


# Each beside another with equal operations and operands that differ in one respect.
CALLS: list[Callable[[], Tensor]] = [
    lambda: meta(4, 6) * 2,
    lambda: meta(6, 4) * 2,
    lambda: meta(6, 4).T * 2,
    lambda: meta(4, 12)[:, ::2] * 2,
    lambda: meta(4, 1).expand(4, 6) * 2,
    lambda: meta(4, 6, dtype=torch.int64) * 2,
    lambda: meta(4, 6, dtype=torch.int64) * 2.0,
    lambda: meta(4, 6, dtype=torch.int64) * True,
    lambda: meta(4, 6, dtype=torch.bool) * True,
    lambda: meta(4, 6).sum(0),
    lambda: meta(4, 6).sum(1),
    lambda: meta(4, 6).sum(0, keepdim=True),
    lambda: meta(4, 6).sum(0, dtype=torch.float64),
    lambda: torch.cat([meta(4, 6), meta(4, 6)]),
    lambda: torch.cat([meta(4, 6), meta(4, 6)], 1),
    lambda: torch.cat([meta(4, 6)]),
    lambda: meta(4, 6).topk(2)[1],
    lambda: meta(4, 6).to(torch.bfloat16),
    lambda: torch.zeros(4, 6, device="meta", dtype=torch.float64),
    lambda: torch.fft.rfft(meta(4, 6)),
    lambda: nn.functional.layer_norm(meta(4, 6), (6,)),
]


def test_remembered_results_are_those_of_torch() -> None:
    def facts(tensor: Tensor) -> tuple[object, ...]:
        memory = tensor.untyped_storage().nbytes()
        return tensor.shape, tensor.stride(), tensor.dtype, tensor.storage_offset(), memory, tensor.device.type

    expected = [facts(call()) for call in CALLS]
    with Remembering() as memory:
        for _ in range(2):
            assert [facts(call()) for call in CALLS] == expected
    assert memory.hits > len(CALLS)


def test_results_that_share_or_change_memory_are_not_remembered() -> None:
    with Remembering() as memory:
        for _ in range(2):
            x = meta(4, 6)
            for y in (x.view(24), x.T, x.detach(), torch.ops.aten._unsafe_view(x, [24]), x.add_(1), x.mul_(2)):
                assert y.untyped_storage()._cdata == x.untyped_storage()._cdata
            kept, _ = torch.ops.aten.native_dropout(x, 0.5, False)
            again, _ = torch.ops.aten.native_dropout(x, 0.5, False)
            assert (kept is x) == (again is x)
            assert x.resize_(2, 3).shape == (2, 3)
    assert {key[0] for key in memory.recipes} == {torch.ops.aten.empty.memory_format}


def test_the_default_dtype_tells_results_apart() -> None:
    with Remembering():
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            try:
                assert (meta(4, dtype=torch.int64) / 2).dtype == dtype
            finally:
                torch.set_default_dtype(torch.float32)


class Replacing(nn.Module):
    """Puts a new buffer in place of its own in every call, so that the old one's memory goes."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 16)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        x = self.embedding(ids)
        y = x - self.mean
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
        return y * y, None


def test_peak_memory_does_not_depend_on_addresses() -> None:
    peaks = set()
    kept = []
    for number in range(8):
        peaks.add(Meter(Replacing(), 16, GateConfig()).step(1, 64).peak_bytes)
        kept += [torch.empty(3, device="meta") for _ in range(number)]
    assert len(peaks) == 1
