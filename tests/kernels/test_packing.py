"""Sequences packed into one row give what each gives alone, and nothing crosses between them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.delta_rule import delta_rule
from kernels.linear_scan import linear_scan
from kernels.packing import first_tokens, offsets_of
from tests.kernels.cases import CASES, Case, Operands, Sizes, error, gradients, requiring_grad
from tests.kernels.conftest import TOLERANCES

PACKED = [case for case in CASES if "cu_seqlens" in inspect.signature(case.operation).parameters]
NAMED = pytest.mark.parametrize("case", PACKED, ids=lambda case: case.name)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# One of each class of lengths that are computed together, some classes with several.
LENGTHS = [5, 1, 70, 64, 2, 33, 1, 128, 8]
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0)


def row(case: Case, dtype: torch.dtype, device: str = "cpu") -> Operands:
    """A row of all sequences; one initial state a sequence."""
    operands = case.operands(Sizes(batch=1, length=sum(LENGTHS), key=8, value=7), dtype=dtype)
    if "initial_state" in operands:
        shape = operands["initial_state"].shape[1:]
        operands["initial_state"] = torch.randn(
            len(LENGTHS), *shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64
        ).to(dtype)
    return {name: x.to(device) for name, x in operands.items()}


def alone(case: Case, operands: Operands, i: int) -> Operands:
    own = {name: x[:, OFFSETS[i] : OFFSETS[i + 1]] if name in case.tokens else x for name, x in operands.items()}
    return own | ({"initial_state": operands["initial_state"][i : i + 1]} if "initial_state" in operands else {})


def test_there_is_something_to_pack() -> None:
    operations = {case.name.split("-")[0] for case in PACKED}
    assert operations == {"delta_rule", "linear_attention", "linear_scan", "short_convolution"}


@NAMED
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_results_and_gradients_are_those_of_each_alone(case: Case, dtype: torch.dtype, device: str) -> None:
    ours = requiring_grad(row(case, dtype, device))
    exact = requiring_grad({name: x.double().cpu() for name, x in ours.items()})
    results = case.run(ours, cu_seqlens=OFFSETS if dtype == torch.float32 else OFFSETS.to(device))
    apart = [case.run(alone(case, exact, i)) for i in range(len(LENGTHS))]
    expected = tuple(torch.cat(parts, 0 if n else 1) for n, parts in enumerate(zip(*apart, strict=True)))
    for found, wanted in zip(results, expected, strict=True):
        assert found.shape == wanted.shape
        assert error(found.cpu(), wanted) < TOLERANCES[dtype]
    found_gradients, wanted_gradients = gradients(tuple(x.cpu() for x in results), ours), gradients(expected, exact)
    for name in ours:
        assert error(found_gradients[name].cpu(), wanted_gradients[name]) < TOLERANCES[dtype], name


@NAMED
def test_the_reference_takes_packed_rows_too(case: Case) -> None:
    operands = row(case, torch.float64)
    results = case.run(operands, cu_seqlens=OFFSETS.int())
    for found, wanted in zip(results, case.run_reference(operands, cu_seqlens=OFFSETS.int()), strict=True):
        assert error(found, wanted) < TOLERANCES[torch.float64]


@NAMED
def test_nothing_crosses_not_even_nan(case: Case) -> None:
    operands = requiring_grad(row(case, torch.float32))
    before = case.run(operands, cu_seqlens=OFFSETS)
    inside = torch.zeros(sum(LENGTHS), dtype=torch.bool)
    inside[OFFSETS[3] : OFFSETS[4]] = True
    others = [i for i in range(len(LENGTHS)) if i != 3]
    for name in case.tokens:
        changed = operands[name].detach().clone()
        changed[:, inside] = torch.nan
        after = case.run(operands | {name: changed}, cu_seqlens=OFFSETS)
        assert torch.equal(after[0][:, ~inside], before[0][:, ~inside]), name
        assert after[0][:, inside].isnan().any(), name
        assert all(torch.equal(a[others], b[others]) for a, b in zip(after[1:], before[1:], strict=True)), name
    # What a sequence's outputs pull at lies in the sequence.
    (grad,) = torch.autograd.grad(before[0][:, inside].sum(), operands[case.tokens[0]])
    assert grad[:, inside].any()
    assert not grad[:, ~inside].any()


X = torch.zeros(1, 6, 3)
Q, GATE = torch.zeros(1, 6, 2, 3), torch.zeros(1, 6, 2)


@pytest.mark.parametrize(
    ("offsets", "x", "message"),
    [
        ([0, 3, 5], X, r"up to 5 operands have \[batch, length\] of \[\(1, 6\)\]"),
        ([0, 6], X.expand(2, 6, 3), r"\[\(2, 6\)\], expected \(1, 6\)"),
        ([1, 6], X, "rise from 0"),
        ([0, 4, 2, 6], X, "rise from 0"),
        ([0, 3, 3, 6], X, "rise from 0"),
        ([6], X, r"shape \[1\], expected \[sequences \+ 1\]"),
    ],
)
def test_offsets_that_do_not_fit(offsets: list[int], x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"linear_scan: .*{message}"):
        linear_scan(x, torch.zeros(3), cu_seqlens=torch.tensor(offsets))


def test_offsets_are_integers() -> None:
    with pytest.raises(TypeError, match=r"cu_seqlens has dtype torch\.float32"):
        linear_scan(X, torch.zeros(3), cu_seqlens=torch.tensor([0.0, 6.0]))


def test_one_initial_state_a_sequence() -> None:
    with pytest.raises(ValueError, match="initial_state has 1 rows, expected one for each of the 2"):
        delta_rule(Q, Q, Q, GATE, initial_state=torch.zeros(1, 2, 3, 3), cu_seqlens=torch.tensor([0, 2, 6]))


def test_offsets_of_documents_keep_rows_and_documents_apart() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 1, 1, 1, 2, 2]], dtype=torch.int32)
    assert offsets_of(documents).tolist() == [0, 2, 5, 6, 7, 10, 12]
    x, decay = torch.randn(2, 6, 3, dtype=torch.float64), torch.full((2, 6, 3), -0.1, dtype=torch.float64)
    flat: Any = [t.flatten(0, 1).unsqueeze(0) for t in (x, decay)]
    found = linear_scan(*flat, cu_seqlens=offsets_of(documents)).view(2, 6, 3)
    reset = decay.masked_fill(first_tokens(documents).unsqueeze(-1), -torch.inf)
    assert error(linear_scan(x, reset), found) < TOLERANCES[torch.float64]
    assert error(found[1, 4:], linear_scan(x[1:, 4:], decay[1:, 4:])[0]) < TOLERANCES[torch.float64]
