"""Later tokens never reach earlier outputs; bad arguments and ambient settings do no silent harm."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.delta_rule import delta_rule
from kernels.delta_rule import reference as delta_rule_reference
from kernels.linear_attention import linear_attention
from kernels.linear_scan import linear_scan
from kernels.long_convolution import long_convolution
from kernels.short_convolution import short_convolution
from kernels.ttt_linear import ttt_linear
from tests.kernels.cases import CASES, Case, Operands, Sizes, gradients, requiring_grad

NAMED = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
LENGTH = 140
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def operands_on(device: str, case: Case, sizes: Sizes) -> Operands:
    return {name: x.to(device) for name, x in case.operands(sizes, dtype=torch.float32).items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [-3.0, -1e4, -1e30, -torch.inf, torch.inf, torch.nan])
@NAMED
def test_no_token_reaches_an_earlier_output(case: Case, value: float, device: str) -> None:
    """Bit for bit, whatever the later token holds, and whichever operand holds it."""
    operands = operands_on(device, case, Sizes(length=LENGTH, key=5, value=6))
    before = case.run(operands)[0]
    for name in case.tokens:
        for position in (1, 40, 63, 64, 100, LENGTH - 1):
            changed = operands[name].clone()
            changed[:, position:] = value
            after = case.run(operands | {name: changed})[0]
            assert torch.equal(after[:, :position], before[:, :position]), (name, position)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@NAMED
def test_a_non_finite_token_is_never_hidden(case: Case, value: float) -> None:
    operands = case.operands(Sizes(length=LENGTH), dtype=torch.float32)
    for name in case.tokens:
        changed = operands[name].clone()
        changed[0, 70] = value
        out = case.run(operands | {name: changed})[0]
        # With a bonus, a token's output is read before its decay.
        first = 71 if name == "log_decay" and "bonus" in operands else 70
        assert not out[0, first].isfinite().any(), name
        assert out[1].isfinite().all(), name
        if case.chunked and name != "q":
            assert not out[0, first:].isfinite().any(), name


@pytest.mark.parametrize("run", [delta_rule, delta_rule_reference.delta_rule])
def test_a_query_whose_square_overflows_has_no_length(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Divided by its length it would be zero, and its output a number that is wrong."""
    q, k, v = torch.randn(3, 1, 70, 2, 8).unbind()
    beta = torch.rand(1, 70, 2)
    before = run(q, k, v, beta, normalise=True)
    q = q.clone()
    q[0, 40, 0, 3] = 3e19
    after = run(q, k, v, beta, normalise=True)
    assert after[0][0, 40, 0].isnan().all()
    assert not after[0][0, 40, 1].isnan().any()
    others = torch.arange(70) != 40
    assert torch.equal(after[0][:, others], before[0][:, others])
    assert torch.equal(after[1], before[1])


@pytest.mark.parametrize("device", DEVICES)
@NAMED
def test_autocast_lowers_products_of_the_chunked_kernels_alone(case: Case, device: str) -> None:
    operands = requiring_grad(operands_on(device, case, Sizes(length=65)))
    lowered = ("q", "k", "v") if device == "cuda" and case.operation in (delta_rule, linear_attention) else ()
    expected = case.run(operands | {name: operands[name].bfloat16() for name in lowered})
    with torch.autocast(device, dtype=torch.bfloat16):
        results = case.run(operands)
    for found, wanted in zip(results, expected, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted.float())


@pytest.mark.parametrize("device", DEVICES)
@NAMED
def test_same_operands_same_bits(case: Case, device: str) -> None:
    operands = requiring_grad(operands_on(device, case, Sizes(length=100)))
    first, second = case.run(operands), case.run(operands)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    one, two = gradients(first, operands), gradients(second, operands)
    assert all(torch.equal(one[name], two[name]) for name in operands)


@NAMED
def test_no_gradient_is_kept_when_none_is_wanted(case: Case) -> None:
    with torch.no_grad():
        assert not any(result.requires_grad for result in case.run(requiring_grad(case.operands(Sizes()))))


@NAMED
def test_non_contiguous_operands(case: Case) -> None:
    operands = case.operands(Sizes(length=33))
    spread = {name: torch.stack((x, x), -1)[..., 0] for name, x in operands.items()}
    assert not spread[case.tokens[0]].is_contiguous()
    for found, wanted in zip(case.run(spread), case.run(operands), strict=True):
        assert torch.equal(found, wanted)


@NAMED
def test_shapes_on_the_meta_device(case: Case) -> None:
    operands = case.operands(Sizes(length=70))
    results = case.run({name: x.to("meta") for name, x in operands.items()})
    assert [x.shape for x in results] == [x.shape for x in case.run(operands)]


class ElementsWritten(TorchDispatchMode):
    """Counts the elements of all results, which bound the memory and the work of everything but the products."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.total += sum(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor))
        return result


@NAMED
def test_work_grows_slower_than_the_square_of_the_length(case: Case) -> None:
    def written(length: int) -> int:
        operands = requiring_grad(case.operands(Sizes(batch=1, length=length, heads=1), dtype=torch.float32))
        with ElementsWritten() as counter:
            gradients(case.run(operands), operands)
        return counter.total

    assert written(2048) < 8**1.3 * written(256)


Q = torch.zeros(2, 6, 3, 4)
GATE = torch.zeros(2, 6, 3)
X = torch.zeros(2, 6, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delta_rule(Q, Q[..., :2], Q, GATE), r"delta_rule: k has shape \[2, 6, 3, 2\], key is 2, expected 4"),
        (lambda: delta_rule(Q, Q, Q, Q), "beta has shape .* expected the axes"),
        (lambda: delta_rule(Q, Q, Q, GATE, chunk_size=0), "chunk_size is 0"),
        (lambda: linear_attention(Q, Q, Q, Q[:, :5]), "log_decay has shape .* length is 5, expected 6"),
        (lambda: linear_attention(Q[:, :0], Q[:, :0], Q[:, :0]), "length is 0, expected at least 1"),
        (lambda: linear_attention(Q, Q, Q, chunk_size=-1), "chunk_size is -1"),
        (lambda: ttt_linear(Q, Q, Q, GATE, *[torch.zeros(3, 4)] * 4), "weight has shape"),
        (
            lambda: ttt_linear(Q, Q, Q, GATE, torch.zeros(3, 4, 4), *[torch.zeros(3, 4)] * 3, chunk_size=0),
            "chunk_size is 0",
        ),
        (lambda: short_convolution(X, torch.zeros(5, 4)), "dim is 5, expected 4"),
        (lambda: short_convolution(X, torch.zeros(4, 4), activation="relu"), "activation is 'relu'"),  # type: ignore[arg-type]
        (lambda: long_convolution(X, torch.zeros(4)), "filter has shape"),
        (lambda: linear_scan(X, torch.zeros(3)), "dim is 3, expected 4"),
    ],
)
def test_shapes_that_disagree_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"linear_scan: x has dtype torch.int64, expected a floating point tensor"):
        linear_scan(X.long(), X)


def test_reference_refuses_what_the_operation_refuses() -> None:
    for case in CASES:
        operands = case.operands(Sizes(length=3))
        name = case.tokens[0]
        broken = operands | {name: operands[name].unsqueeze(-1)}
        messages = []
        for run in (case.run, case.run_reference):
            with contextlib.suppress(ValueError):
                run(broken)
                pytest.fail(f"{case.name} accepted {list(broken[name].shape)}")
            with pytest.raises(ValueError, match=name) as caught:
                run(broken)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
