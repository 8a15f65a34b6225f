"""The fused form of linear_cross_entropy in Triton's interpreter, in float32, since it gives garbage for bfloat16.

Run by test_linear_cross_entropy.py in a process of its own: the interpreter has to be chosen before triton is loaded.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.linear_cross_entropy import reference
from kernels.linear_cross_entropy import triton as fused
from tests.kernels.cases import error
from tests.kernels.test_linear_cross_entropy import Problem, problem

NARROW = fused.Tiles(16, 64, None, 4, 1, programs=6)
IN_REGISTERS = replace(NARROW, in_registers=True, programs=1)
WIDE = fused.Tiles(32, 64, 16, 4, 1)
TILES = pytest.mark.parametrize("tiles", [NARROW, IN_REGISTERS, WIDE], ids=["narrow", "in_registers", "wide"])


def compare(p: Problem, tiles: fused.Tiles, chunk_tokens: int | None) -> None:
    loss, by_hidden, by_weight = fused.loss_and_gradients(
        p.hidden, p.weight, p.targets, -100, p.vocab, p.scale, tiles=tiles, chunk_tokens=chunk_tokens
    )
    hidden, weight = p.hidden.double().requires_grad_(), p.weight.double().requires_grad_()
    wanted = reference.linear_cross_entropy(hidden, weight, p.targets, vocab=p.vocab, scale=p.scale)
    wanted.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert weight.grad is not None
    assert error(loss, wanted) < 1e-5
    assert error(by_hidden, hidden.grad) < 1e-5
    assert error(by_weight, weight.grad) < 1e-5
    assert not by_weight[p.vocab :].any()


@TILES
@pytest.mark.parametrize(
    ("tokens", "dim", "rows", "vocab"), [(50, 32, 192, 150), (33, 24, 150, 150), (1, 7, 3, 3), (17, 32, 64, 2)]
)
def test_loss_and_gradients(tokens: int, dim: int, rows: int, vocab: int, tiles: fused.Tiles) -> None:
    compare(problem(tokens, dim, rows, vocab), tiles, chunk_tokens=32)


@TILES
def test_targets_far_below_the_largest_logit(tiles: fused.Tiles) -> None:
    """Losses of hundreds of nats, whose exponentials relative to the target overflow, beside ordinary ones."""
    p = problem(40, 32, 130, 130, spread=60.0)
    compare(replace(p, hidden=p.hidden * (torch.arange(40) % 2 + 0.01).unsqueeze(1)), tiles, chunk_tokens=None)


@TILES
def test_negative_and_zero_scale(tiles: fused.Tiles) -> None:
    for scale in (-1.5, 0.0):
        compare(replace(problem(20, 16, 64, 60), scale=scale), tiles, chunk_tokens=None)


def test_a_target_outside_the_vocabulary_gives_nan() -> None:
    p = problem(20, 16, 64, 60)
    p.targets[3] = 60
    assert fused.loss_and_gradients(p.hidden, p.weight, p.targets, -100, 60, 1.0, tiles=NARROW)[0].isnan()
    found, best = fused.log_likelihood(p.hidden, p.weight, p.targets, -100, 60, 1.0)
    assert found.isnan().nonzero().tolist() == [[3]]
    assert not best[3]


@pytest.mark.parametrize(("tokens", "dim", "rows", "vocab"), [(50, 32, 192, 150), (33, 24, 150, 150), (17, 32, 64, 1)])
def test_likelihood(tokens: int, dim: int, rows: int, vocab: int) -> None:
    for p in (problem(tokens, dim, rows, vocab), problem(tokens, dim, rows, vocab, spread=60.0)):
        found, best = fused.log_likelihood(p.hidden, p.weight, p.targets, -100, vocab, p.scale, tiles=WIDE)
        wanted, wanted_best = reference.linear_log_likelihood(
            p.hidden.double(), p.weight.double(), p.targets, vocab=vocab, scale=p.scale
        )
        assert error(found, wanted) < 1e-5
        assert torch.equal(best, wanted_best)


def test_of_equal_logits_the_first_is_the_most_likely() -> None:
    p = problem(50, 16, 130, 120)
    targets = torch.arange(50) // 25
    _, best = fused.log_likelihood(p.hidden, torch.zeros_like(p.weight), targets, -100, 120, 1.0, tiles=WIDE)
    assert torch.equal(best, targets == 0)
