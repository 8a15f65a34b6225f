"""The GPU form of the short convolution in Triton's interpreter; test_short_convolution.py runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.configurations import trial
from kernels.short_convolution import reference, wide
from kernels.short_convolution import triton as fused
from tests.kernels.cases import error


@pytest.fixture(autouse=True)
def small_blocks(request: pytest.FixtureRequest) -> Iterator[None]:
    """So that short sequences are cut too. Tokens of a program, forward and backward, and read ahead."""
    *both, ahead = getattr(request, "param", (8, 16, 4))
    forward, backward = ({"tokens": [tokens], "programs": 1, "ahead": ahead, "bytes": 8} for tokens in both)
    with (
        trial("short_convolution", {"forward": forward, "backward": backward}),
        trial("short_convolution_wide", {"tokens": 16, "summed": 24, "bytes": 4}),
    ):
        yield


@pytest.mark.parametrize(("silu", "biased"), [(True, True), (False, False)])
@pytest.mark.parametrize(
    ("batch", "length", "dim", "width"),
    [
        (2, 33, 5, 4), (1, 16, 140, 4), (2, 7, 3, 1), (1, 17, 8, 8), (1, 2, 4, 3),
        (2, 33, 3, 9), (1, 5, 4, 16), (1, 26, 2, 30),
    ],
)  # fmt: skip
def test_results_and_gradients(batch: int, length: int, dim: int, width: int, silu: bool, biased: bool) -> None:
    generator = torch.Generator().manual_seed(length)
    # Channels of a larger tensor, as of a projection for queries, keys and values.
    x = torch.randn(batch, length, 2 * dim, generator=generator)[:, :, :dim]
    weight, bias = torch.randn(dim, width, generator=generator), torch.randn(2 * dim, generator=generator)[::2]
    dy = torch.randn(batch, length, dim, generator=generator)
    used = bias if biased else None
    form = fused if width <= 8 else wide
    found = (form.forward(x, weight, used, None, silu), *form.backward(x, weight, used, None, silu, dy))
    assert len({tensor.untyped_storage().data_ptr() for tensor in found}) == 4
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    y = reference.short_convolution(exact[0], exact[1], exact[2] if biased else None, "silu" if silu else None)
    wanted = torch.autograd.grad((y * dy).sum(), exact[: 2 + biased])
    for ours, expected in zip(found, (y, *wanted), strict=biased):
        assert error(ours, expected) < 1e-5


@pytest.mark.parametrize("width", [4, 11])
def test_no_token_reaches_an_earlier_output(width: int) -> None:
    x, weight, form = torch.randn(1, 34, 5), torch.randn(5, width), fused if width <= 8 else wide
    before = form.forward(x, weight, None, None, True)
    for position in (1, 8, 31):
        changed = x.clone()
        changed[:, position] = torch.nan
        after = form.forward(changed, weight, None, None, True)
        assert torch.equal(after[:, :position], before[:, :position])
        assert after[:, position : position + width].isnan().all()
        assert torch.equal(after[:, position + width :], before[:, position + width :])


def ragged(length: int, dtype: torch.dtype) -> torch.Tensor:
    """Two rows of short documents, then padding. An id may come again behind another document, as in the second row."""
    rows = [[0, 0, 0, 0, 1, 2, 3, 3, 3, 3, 4, 4, 5], [0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0]]
    documents = torch.tensor([(row + row[-1:] * length)[:length] for row in rows], dtype=dtype)
    documents[:, -2:] = -1
    return documents


@pytest.mark.parametrize(
    ("length", "width", "silu", "dtype"),
    [(25, 4, True, torch.int32), (9, 2, False, torch.int64), (17, 8, True, torch.int64), (26, 17, True, torch.int32)],
)
def test_documents_stay_apart(length: int, width: int, silu: bool, dtype: torch.dtype) -> None:
    """Results and gradients are those of each document alone."""
    generator = torch.Generator().manual_seed(length)
    x, dy = (torch.randn(2, length, 3, generator=generator) for _ in range(2))
    weight, bias = torch.randn(3, width, generator=generator), torch.randn(3, generator=generator)
    form, documents = fused if width <= 8 else wide, ragged(length, dtype)
    found = (form.forward(x, weight, bias, documents, silu), *form.backward(x, weight, bias, documents, silu, dy))
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    y = reference.short_convolution(*exact, "silu" if silu else None, documents=documents)
    for ours, expected in zip(found, (y, *torch.autograd.grad((y * dy).sum(), exact)), strict=True):
        assert error(ours, expected) < 1e-5


@pytest.mark.parametrize("small_blocks", [(64, 64, 2)], indirect=True, ids=str)
@pytest.mark.parametrize("width", [2, 4, 8])
def test_borders_far_from_each_other(width: int) -> None:
    """Most blocks of tokens hold none; each is marked together with the next one here. Numbers come back."""
    documents = torch.zeros(3, 72, dtype=torch.int32)
    for row, (begin, end) in enumerate(((1, 33), (63, 68), (31, 64))):
        documents[row, begin:end] = 1
    x, dy, weight = torch.randn(3, 72, 1), torch.randn(3, 72, 1), torch.randn(1, width)
    dx, by_weight, _ = fused.backward(x, weight, None, documents, True, dy)
    found = fused.forward(x, weight, None, documents, True), dx, by_weight
    exact = [tensor.double().requires_grad_() for tensor in (x, weight)]
    y = reference.short_convolution(exact[0], exact[1], None, "silu", documents=documents)
    for ours, expected in zip(found, (y, *torch.autograd.grad((y * dy).sum(), exact)), strict=True):
        assert error(ours, expected) < 1e-5


@pytest.mark.parametrize("width", [4, 9])
def test_a_single_document_changes_no_bit(width: int) -> None:
    x, dy, weight = torch.randn(1, 10, 3), torch.randn(1, 10, 3), torch.randn(3, width)
    form, one = fused if width <= 8 else wide, torch.full((1, 10), 7)
    assert torch.equal(form.forward(x, weight, None, one, True), form.forward(x, weight, None, None, True))
    found = form.backward(x, weight, None, one, True, dy)
    assert all(torch.equal(a, b) for a, b in zip(found, form.backward(x, weight, None, None, True, dy), strict=True))


def test_not_even_nan_crosses_documents() -> None:
    x, dy, weight = torch.randn(1, 16, 3), torch.randn(1, 16, 3), torch.randn(3, 4)
    documents = torch.tensor([[0] * 5 + [1] * 6 + [2] * 5])
    inside = documents[0] == 1
    before = fused.forward(x, weight, None, documents, True), fused.backward(x, weight, None, documents, True, dy)[0]
    x[:, inside] = dy[:, inside] = torch.nan
    after = fused.forward(x, weight, None, documents, True), fused.backward(x, weight, None, documents, True, dy)[0]
    for found, wanted in zip(after, before, strict=True):
        assert found[:, inside].isnan().all()
        assert torch.equal(found[:, ~inside], wanted[:, ~inside])
