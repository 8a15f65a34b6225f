"""Which form of an operation runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.delta_rule import delta_rule
from kernels.linear_attention import linear_attention
from kernels.operands import addressable, fused_allowed, lowered, output_gradient, plain_forms
from kernels.swiglu import operation


def test_plain_forms_end_with_their_block() -> None:
    before = fused_allowed()
    with pytest.raises(KeyError), plain_forms():
        assert not fused_allowed()
        with plain_forms():
            pass
        assert not fused_allowed()
        raise KeyError
    assert fused_allowed() == before


@pytest.mark.gpu
def test_no_kernel_runs_where_plain_forms_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(operation, "_forward", lambda x: calls.append(x) or x[:, : x.shape[1] // 2])
    x = torch.randn(4, 8, device="cuda")
    with plain_forms():
        operation.swiglu(x)
    assert not calls
    operation.swiglu(x)
    assert len(calls) == 1


def test_places_beyond_32_bits_are_left_to_the_plain_forms() -> None:
    fits, beyond = (torch.empty(1, 2**19, 32, width, device="meta") for width in (127, 128))
    assert addressable(fits, fits)
    assert not addressable(fits, beyond)
    assert not addressable(torch.empty(1, 32, 2**19, 128, device="meta").transpose(1, 2))
    assert output_gradient(beyond[:, :, :, :8], fits).is_contiguous()
    assert output_gradient(fits[:, :, :, :8], fits).stride() == fits.stride()


def test_autocast_lowers_what_its_own_products_would() -> None:
    x, exact, half = torch.randn(3), torch.randn(3, dtype=torch.float64), torch.randn(3).half()
    assert lowered(x, exact, half) == (x, exact, half)

    def types() -> list[torch.dtype]:
        return [operand.dtype for operand in lowered(x, exact, half)]

    with torch.autocast("cpu", torch.bfloat16):
        expected = [torch.bfloat16, torch.float64, torch.bfloat16]
        assert types() == torch.compile(types, backend="eager", fullgraph=True)() == expected


@pytest.mark.gpu
@pytest.mark.parametrize("operation", [delta_rule, linear_attention])
def test_products_under_autocast(operation: Callable[..., tuple[Tensor, Tensor]]) -> None:
    q, k, v = (torch.randn(1, 80, 2, 32, device="cuda") for _ in range(3))
    beta = (torch.rand(1, 80, 2, device="cuda"),) if operation is delta_rule else ()
    with torch.autocast("cuda", torch.bfloat16):
        out, state = operation(q, F.normalize(k, dim=-1), v, *beta)
    expected = operation(q.bfloat16(), F.normalize(k, dim=-1).bfloat16(), v.bfloat16(), *beta)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected[0].float())
    assert torch.equal(state, expected[1])
