"""The GPU form of the short convolution in Triton's interpreter; test_short_convolution.py runs it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from kernels.configurations import trial
from kernels.short_convolution import reference, wide
from kernels.short_convolution import triton as fused
from tests.kernels.cases import error


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    """So that short sequences are cut too."""
    forward, backward = ({"tokens": [tokens], "programs": 1, "ahead": 4, "bytes": 8} for tokens in (8, 16))
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
    weight, bias = torch.randn(dim, width, generator=generator), torch.randn(dim, generator=generator)
    dy = torch.randn(batch, length, dim, generator=generator)
    used = bias if biased else None
    form = fused if width <= 8 else wide
    between = () if form is wide else (None,)
    found = (form.forward(x, weight, used, *between, silu), *form.backward(x, weight, used, *between, silu, dy))
    assert len({tensor.untyped_storage().data_ptr() for tensor in found}) == 4
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    y = reference.short_convolution(exact[0], exact[1], exact[2] if biased else None, "silu" if silu else None)
    wanted = torch.autograd.grad((y * dy).sum(), exact[: 2 + biased])
    for ours, expected in zip(found, (y, *wanted), strict=biased):
        assert error(ours, expected) < 1e-5


@pytest.mark.parametrize("width", [4, 11])
def test_no_token_reaches_an_earlier_output(width: int) -> None:
    x, weight = torch.randn(1, 34, 5), torch.randn(5, width)
    form = partial(fused.forward, documents=None) if width <= 8 else wide.forward
    before = form(x, weight, None, silu=True)
    for position in (1, 8, 31):
        changed = x.clone()
        changed[:, position] = torch.nan
        after = form(changed, weight, None, silu=True)
        assert torch.equal(after[:, :position], before[:, :position])
        assert after[:, position : position + width].isnan().all()
        assert torch.equal(after[:, position + width :], before[:, position + width :])


@pytest.mark.parametrize("width", [2, 4, 8])
def test_documents(width: int) -> None:
    sizes = [[1, 2, 30, 1, 7], [16, 8, 17], [3, 3, 3, 32]]
    of = torch.tensor([[i for i, size in enumerate(row) for _ in range(size)] for row in sizes])
    x, weight, bias = torch.randn(3, 41, 5), torch.randn(5, width), torch.randn(5)
    dy = torch.randn_like(x)
    found = (fused.forward(x, weight, bias, of, True), *fused.backward(x, weight, bias, of, True, dy))
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    y = reference.short_convolution(*exact, "silu", documents=of)
    for ours, expected in zip(found, (y, *torch.autograd.grad((y * dy).sum(), exact)), strict=True):
        assert error(ours, expected) < 1e-5
    changed = x.masked_fill((of == 1).unsqueeze(-1), torch.nan)
    apart = (of != 1).unsqueeze(-1).expand_as(x)
    assert torch.equal(fused.forward(changed, weight, bias, of, True)[apart], found[0][apart])
