"""Which form of an operation runs."""

from __future__ import annotations

import pytest
import torch

from kernels.operands import fused_allowed, plain_forms
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
