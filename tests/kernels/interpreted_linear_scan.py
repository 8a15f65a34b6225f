"""The GPU form of the linear scan in Triton's interpreter; test_linear_scan.py runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kernels.configurations import trial
from kernels.linear_scan import operation, reference
from kernels.linear_scan import triton as fused
from tests.kernels.cases import error


@pytest.fixture(autouse=True)
def programs(request: pytest.FixtureRequest) -> Iterator[int]:
    """That keep the device busy; segments may be short."""
    programs: int = getattr(request, "param", 1024)
    sizes = {"bytes": 4, "programs": programs, "least_tokens": 16, "most_segments": 64}
    with trial("linear_scan", sizes):
        yield programs


def draw(batch: int, length: int, dim: int, *, constant: bool) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length + dim)
    # Channels of larger tensors, as of a projection for several uses.
    x, log_decay = torch.randn(2, batch, length, 2 * dim, generator=generator)[..., :dim]
    log_decay = -(log_decay - 1).exp()
    return x, log_decay[0, 0].clone() if constant else log_decay, torch.randn(batch, length, dim, generator=generator)


def compare(x: Tensor, log_decay: Tensor, dh: Tensor, bound: float = 1e-5) -> None:
    """Through the operators, as autograd runs them."""
    ours = [t.detach().requires_grad_() for t in (x, log_decay)]
    exact = [t.detach().double().requires_grad_() for t in (x, log_decay)]
    h = operation._forward(*ours)[0]
    wanted = reference.linear_scan(exact[0], exact[1])
    assert error(h, wanted) < bound
    found = torch.autograd.grad(h, ours, dh)
    for a, b in zip(found, torch.autograd.grad(wanted, exact, dh.double()), strict=True):
        assert error(a, b) < bound


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("batch", "length", "dim"), [(2, 33, 5), (1, 1, 3), (1, 7, 1), (1, 16, 70)])
def test_results_and_gradients(batch: int, length: int, dim: int, constant: bool) -> None:
    compare(*draw(batch, length, dim, constant=constant))


@pytest.mark.parametrize("programs", [1, 100], indirect=True)
def test_segments(programs: int) -> None:
    operands = draw(1, 65, 6, constant=False)
    assert fused._sizes(operands[0])[0] == {1: 1, 100: 3}[programs]
    compare(*operands)


def test_extreme_decays() -> None:
    x, log_decay, dh = draw(1, 20, 6, constant=False)
    choices = torch.tensor([0.0, -1e-3, -30.0, -200.0, -1e30, -torch.inf])
    index = torch.randint(len(choices), log_decay.shape, generator=torch.Generator().manual_seed(0))
    compare(x, choices[index], dh)
    compare(x, choices[: x.shape[2]].clone(), dh)


def test_no_token_reaches_an_earlier_output() -> None:
    x, log_decay, _ = draw(1, 34, 5, constant=False)
    before = fused.forward(x, log_decay)[0]
    for position in (8, 31):
        for changed in (x.clone(), log_decay.clone()):
            other = (changed, log_decay) if torch.equal(changed, x) else (x, changed)
            changed[:, position:] = torch.nan
            after = fused.forward(*other)[0]
            assert torch.equal(after[:, :position], before[:, :position])
            assert after[:, position:].isnan().all()


def test_compiled_whole() -> None:
    x, log_decay, dh = draw(1, 17, 3, constant=False)
    ours, same = ([t.detach().requires_grad_() for t in (x, log_decay)] for _ in range(2))
    compiled = torch.compile(lambda x, g: operation._forward(x * 2, g)[0] + 1, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(*ours), operation._forward(same[0] * 2, same[1])[0] + 1
    assert torch.equal(found, wanted)
    pairs = zip(torch.autograd.grad(found, ours, dh), torch.autograd.grad(wanted, same, dh), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
