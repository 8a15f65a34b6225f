"""Documents of a row give what each gives alone, in every operation that takes them."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.delta_rule import delta_rule
from kernels.linear_scan import linear_scan
from kernels.packing import kept, places, previous
from kernels.short_convolution import short_convolution
from tests.kernels.cases import CASES, Case, Operands, Sizes, error, gradients, requiring_grad
from tests.kernels.conftest import TOLERANCES

APART = [case for case in CASES if "documents" in inspect.signature(case.operation).parameters]
NAMED = pytest.mark.parametrize("case", APART, ids=lambda case: case.name)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Rows of equal length: many documents, one that ends at a border of chunks, one alone.
ROWS = [[5, 1, 1, 40, 64, 19], [64, 64, 2], [130]]


def numbered(rows: list[list[int]]) -> Tensor:
    """The last document of every row but the last is padding."""
    found = torch.tensor([[i for i, size in enumerate(row) for _ in range(size)] for row in rows], dtype=torch.int32)
    found[:-1, -1:] = -1
    return found


def operands(case: Case, dtype: torch.dtype, device: str = "cpu") -> Operands:
    made = case.operands(Sizes(batch=len(ROWS), length=sum(ROWS[0]), key=8, value=7), dtype=dtype)
    return {name: x.to(device) for name, x in made.items()}


def test_there_are_operations_that_keep_documents_apart() -> None:
    operations = {case.name.split("-")[0] for case in APART}
    assert operations == {"delta_rule", "linear_attention", "linear_scan", "short_convolution"}


@NAMED
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_results_and_gradients_are_the_reference_s(case: Case, dtype: torch.dtype, device: str) -> None:
    ours = requiring_grad(operands(case, dtype, device))
    exact = requiring_grad({name: x.double().cpu() for name, x in ours.items()})
    documents = numbered(ROWS)
    results = tuple(x.cpu() for x in case.run(ours, documents=documents.to(device)))
    expected = case.run_reference(exact, documents=documents)
    for found, wanted in zip(results, expected, strict=True):
        assert found.shape == wanted.shape
        assert error(found, wanted) < TOLERANCES[dtype]
    found_gradients, wanted_gradients = gradients(results, ours), gradients(expected, exact)
    for name in ours:
        assert error(found_gradients[name].cpu(), wanted_gradients[name]) < TOLERANCES[dtype], name


@NAMED
@given(sizes=st.lists(st.integers(1, 70), min_size=2, max_size=6), data=st.data())
@settings(deadline=None, max_examples=10)
def test_a_document_gives_what_it_gives_alone(case: Case, sizes: list[int], data: st.DataObject) -> None:
    made = case.operands(Sizes(batch=1, length=sum(sizes), heads=1))
    start = made.pop("initial_state", None)  # the first document's
    documents = numbered([sizes])
    begin = sum(sizes[: (chosen := data.draw(st.integers(0, len(sizes) - 1)))])
    own = {name: x[:, begin : begin + sizes[chosen]] if name in case.tokens else x for name, x in made.items()}
    first = {} if start is None else {"initial_state": start}
    together = case.run(made | first, documents=documents)
    alone = case.run(own | (first if chosen == 0 else {}))
    assert error(together[0][:, begin : begin + sizes[chosen]], alone[0]) < 1e-10
    if chosen == len(sizes) - 1:
        assert all(error(a, b) < 1e-10 for a, b in zip(together[1:], alone[1:], strict=True))


@NAMED
def test_one_document_is_none(case: Case) -> None:
    made = operands(case, torch.float32)
    one = torch.zeros(len(ROWS), sum(ROWS[0]), dtype=torch.int64)
    for found, wanted in zip(case.run(made, documents=one), case.run(made), strict=True):
        assert error(found, wanted) <= (0 if case.operation is short_convolution else 1e-6)


def test_a_short_convolution_lets_nothing_cross() -> None:
    """Not nan, and not to the third document from the first, which has the same number."""
    x, documents = torch.randn(1, 13, 4, requires_grad=True), torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 2, 2, 2]])
    inside = torch.arange(13).sub(4).abs() < 2
    changed = x.masked_fill((torch.arange(13) < 6).unsqueeze(-1), torch.nan)
    before, after = (short_convolution(values, torch.ones(4, 8), documents=documents) for values in (x, changed))
    assert torch.equal(after[:, 6:], before[:, 6:])
    assert after[:, :6].isnan().all()
    (grad,) = torch.autograd.grad(before[:, inside].sum(), x)
    assert grad[:, inside].all()
    assert not grad[:, ~inside].any()


def test_the_token_before() -> None:
    x, documents = torch.arange(1.0, 9.0).view(2, 4, 1), torch.tensor([[0, 0, 1, 1], [3, 3, 3, -1]])
    assert previous(x).squeeze(-1).tolist() == [[0, 1, 2, 3], [0, 5, 6, 7]]
    assert previous(x, documents).squeeze(-1).tolist() == [[0, 1, 0, 3], [0, 5, 6, 0]]
    assert previous(x, documents, 2).squeeze(-1).tolist() == [[0, 0, 0, 0], [0, 0, 5, 0]]
    assert not previous(x, documents, 9).any()


def test_places_are_counted_from_each_document_s_start() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1], [3, -1, -1, -1, -1], [7, 7, 7, 7, 7]])
    assert places(documents).tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_what_is_not_kept_is_zero_whatever_it_was(dtype: torch.dtype, device: str) -> None:
    where = torch.tensor([[True, False, True], [False, True, False]])
    x = torch.randn(2, 3, 2, 5, dtype=torch.float64).masked_fill(~where[..., None, None], torch.nan)
    x = x.to(device, dtype).requires_grad_()
    found = kept(x[..., 1:4], where.to(device))
    assert torch.equal(found, x[..., 1:4].nan_to_num())
    (grad,) = torch.autograd.grad(found.square().sum(), x, create_graph=True)
    assert torch.equal(grad[..., 1:4], 2 * found)
    assert torch.equal(torch.autograd.grad(grad.sum(), x)[0][..., 1].bool().any(-1), where.to(device))


def test_documents_that_do_not_fit() -> None:
    x, decay, documents = torch.zeros(2, 6, 3), torch.zeros(3), torch.zeros(2, 6, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"documents has dtype torch\.float32, expected integers"):
        linear_scan(x, decay, documents=documents.float())
    with pytest.raises(ValueError, match=r"documents has shape \[2, 5\], expected \[batch, length\], \[2, 6\]"):
        linear_scan(x, decay, documents=documents[:, :5])
    with pytest.raises(ValueError, match="found documents and cu_seqlens, expected one of them"):
        linear_scan(x, decay, documents=documents, cu_seqlens=torch.tensor([0, 6]))
    q, beta = torch.zeros(2, 6, 2, 3), torch.zeros(2, 6, 2)
    with pytest.raises(ValueError, match="log_decay has shape"):
        delta_rule(q, q, q, beta, beta[..., :1], documents=documents)
