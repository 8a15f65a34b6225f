"""The head's loss: every form gives the reference's loss, gradients and likelihoods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.linear_cross_entropy import chunked, linear_cross_entropy, linear_log_likelihood, reference
from tests.kernels.cases import error
from tests.kernels.conftest import TOLERANCES
from tests.kernels.interpreter import run_interpreted

SIZES = [(50, 32, 192, 150), (33, 24, 150, 150), (1, 7, 3, 3), (17, 8, 64, 1)]


@dataclass(frozen=True)
class Problem:
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    vocab: int
    scale: float = 0.7

    def options(self) -> dict[str, Any]:
        return {"vocab": self.vocab, "scale": self.scale}


def problem(tokens: int, dim: int, rows: int, vocab: int, *, spread: float = 1.0, device: str = "cpu") -> Problem:
    """Logits with a standard deviation of about `spread`; every fifth target does not count."""
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, dim, generator=generator)
    weight = torch.randn(rows, dim, generator=generator) * spread / dim**0.5
    targets = torch.randint(vocab, (tokens,), generator=generator)
    targets[1::5] = -100
    return Problem(hidden.to(device), weight.to(device), targets.to(device), vocab)


def with_gradients(operation: Callable[..., Tensor], p: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and the gradients of a third of it."""
    hidden, weight = (x.to(dtype).requires_grad_() for x in (p.hidden, p.weight))
    loss = operation(hidden, weight, p.targets, **p.options())
    by_hidden, by_weight = torch.autograd.grad(loss / 3, (hidden, weight))
    return loss, by_hidden, by_weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_loss_and_gradients(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks that do not divide the tokens."""
    monkeypatch.setattr(chunked, "_CHUNK_ELEMENTS", 16 * sizes[3])
    for spread in (1.0, 60.0):
        p = problem(*sizes, spread=spread)
        found = with_gradients(linear_cross_entropy, p, dtype)
        wanted = with_gradients(reference.linear_cross_entropy, p, torch.float64)
        for ours, exact in zip(found, wanted, strict=True):
            assert ours.dtype == dtype
            assert error(ours, exact) < TOLERANCES[dtype]
        assert not found[2][p.vocab :].any()
        with torch.no_grad():
            without = linear_cross_entropy(p.hidden.to(dtype), p.weight.to(dtype), p.targets, **p.options())
        assert error(without, wanted[0]) < TOLERANCES[dtype]


def test_hidden_in_bfloat16_and_weight_in_float32() -> None:
    p = problem(50, 32, 192, 150)
    hidden, weight = p.hidden.bfloat16().requires_grad_(), p.weight.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, p.targets, **p.options())
    by_hidden, by_weight = torch.autograd.grad(loss, (hidden, weight))
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    wanted = reference.linear_cross_entropy(*exact, p.targets, **p.options())
    wanted_by_hidden, wanted_by_weight = torch.autograd.grad(wanted, exact)
    assert (loss.dtype, by_hidden.dtype, by_weight.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert error(loss, wanted) < 1e-5
    assert error(by_hidden, wanted_by_hidden) < TOLERANCES[torch.bfloat16]
    assert error(by_weight, wanted_by_weight) < TOLERANCES[torch.float32]


def test_one_gradient_alone() -> None:
    p = problem(20, 8, 30, 30)
    both = with_gradients(linear_cross_entropy, p, torch.float32)
    for name, wanted in (("hidden", both[1]), ("weight", both[2])):
        operands = {"hidden": p.hidden, "weight": p.weight} | {name: getattr(p, name).clone().requires_grad_()}
        loss = linear_cross_entropy(**operands, targets=p.targets, **p.options())
        assert torch.equal(torch.autograd.grad(loss / 3, operands[name])[0], wanted)


def test_nothing_to_predict() -> None:
    p = problem(5, 8, 30, 30)
    hidden = p.hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, p.weight, torch.full((5,), 7), ignore_index=7)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, hidden)[0].any()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_likelihood(sizes: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_CHUNK_ELEMENTS", 16 * sizes[3])
    p = problem(*sizes, spread=3.0)
    most_likely = (p.hidden @ p.weight[: p.vocab].T).argmax(1)
    for targets in (p.targets, torch.where(torch.arange(sizes[0]) % 2 == 0, most_likely, p.targets)):
        found, best = linear_log_likelihood(p.hidden, p.weight, targets, **p.options())
        wanted, wanted_best = reference.linear_log_likelihood(
            p.hidden.double(), p.weight.double(), targets, **p.options()
        )
        assert error(found, wanted) < TOLERANCES[torch.float32]
        assert torch.equal(best, wanted_best)
        assert not found[targets == -100].any()


def test_of_equal_logits_the_first_is_the_most_likely() -> None:
    targets = torch.tensor([0, 1, 2, 0])
    for operation in (linear_log_likelihood, reference.linear_log_likelihood):
        _, best = operation(torch.ones(4, 8), torch.zeros(30, 8), targets)
        assert best.tolist() == [True, False, False, True]


def test_a_nan_is_never_hidden() -> None:
    p = problem(20, 8, 30, 30)
    p.hidden[2] = torch.nan
    assert linear_cross_entropy(p.hidden, p.weight, p.targets).isnan()
    found, best = linear_log_likelihood(p.hidden, p.weight, p.targets)
    assert found.isnan().nonzero().tolist() == [[2]]
    assert not best[2]


def test_in_a_compiled_graph() -> None:
    p = problem(20, 8, 30, 28)
    hidden, weight = p.hidden.requires_grad_(), p.weight.requires_grad_()

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return linear_cross_entropy(h * 2, w, p.targets, vocab=28) / 3

    expected = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for found, wanted in zip(torch.autograd.grad(compiled(hidden, weight), (hidden, weight)), expected, strict=True):
        assert error(found, wanted) < 1e-6


def test_arguments_that_do_not_fit() -> None:
    p = problem(20, 8, 30, 30)
    with pytest.raises(ValueError, match="vocab is 31, expected 1 to 30"):
        linear_cross_entropy(p.hidden, p.weight, p.targets, vocab=31)
    with pytest.raises(ValueError, match="dim is 7, expected 8"):
        linear_cross_entropy(p.hidden, p.weight[:, :7], p.targets)
    with pytest.raises(ValueError, match=r"targets have shape \[19\], expected \[20\]"):
        linear_cross_entropy(p.hidden, p.weight, p.targets[1:])
    with pytest.raises(TypeError, match=r"expected torch\.int64"):
        linear_cross_entropy(p.hidden, p.weight, p.targets.int())
    for operation in (linear_cross_entropy, linear_log_likelihood):
        with pytest.raises(IndexError, match="target 30 is outside the vocabulary of 30"):
            operation(p.hidden, p.weight, p.targets.clamp(min=0) + 30 * (torch.arange(20) == 0) - p.targets[0])


def test_fused_form_in_the_interpreter() -> None:
    run_interpreted("interpreted_linear_cross_entropy.py")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("spread", [2.0, 60.0])
@pytest.mark.parametrize("sizes", [(1000, 256, 50_304, 50_257), (65, 100, 999, 999), (129, 1024, 5000, 4990)], ids=str)
def test_on_a_gpu(sizes: tuple[int, int, int, int], spread: float, dtype: torch.dtype) -> None:
    p = problem(*sizes, spread=spread, device="cuda")
    rounded = Problem(p.hidden.to(dtype), p.weight.to(dtype), p.targets, p.vocab)
    found = with_gradients(linear_cross_entropy, rounded, dtype)
    wanted = with_gradients(reference.linear_cross_entropy, rounded, torch.float64)
    assert error(found[0], wanted[0]) < 1e-5
    for ours, exact in zip(found[1:], wanted[1:], strict=True):
        assert error(ours, exact) < (TOLERANCES[torch.float32] if dtype == torch.float32 else 1e-2)
    assert all(
        torch.equal(x, y) for x, y in zip(found, with_gradients(linear_cross_entropy, rounded, dtype), strict=True)
    )
    likelihood, best = linear_log_likelihood(rounded.hidden, rounded.weight, p.targets, **p.options())
    wanted_likelihood, wanted_best = reference.linear_log_likelihood(
        rounded.hidden.double(), rounded.weight.double(), p.targets, **p.options()
    )
    assert error(likelihood, wanted_likelihood) < 1e-5
    assert torch.equal(best, wanted_best)


@pytest.mark.gpu
def test_under_autocast_the_operands_are_lowered() -> None:
    p = problem(300, 128, 1000, 990, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        found = with_gradients(linear_cross_entropy, p, torch.float32)
    wanted = with_gradients(reference.linear_cross_entropy, p, torch.float64)
    assert all(x.dtype == torch.float32 for x in found)
    assert error(found[0], wanted[0]) < 1e-3
    assert all(error(x, y) < 2e-2 for x, y in zip(found[1:], wanted[1:], strict=True))
