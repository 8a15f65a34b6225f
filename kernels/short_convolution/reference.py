"""The short causal convolution token by token: the definition that the other form is tested against."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kernels.packing import check_documents, document_by_document, one_by_one
from kernels.short_convolution.chunked import check_operands
from kernels.short_convolution.recurrent import state_after, step


def short_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Same arguments and result as `kernels.short_convolution.short_convolution`."""
    check_documents("short_convolution", documents, x, cu_seqlens)

    def run(own: Tensor) -> tuple[Tensor]:
        return (short_convolution(own, weight, bias, activation),)

    if documents is not None:
        return document_by_document(run, documents, (x,))[0]
    if cu_seqlens is not None:
        return one_by_one("short_convolution", run, cu_seqlens, (x,))[0]
    check_operands(x, weight, bias, activation)
    state = state_after(x[:, :0], weight.shape[1])
    outputs = []
    for t in range(x.shape[1]):
        y, state = step(x[:, t], weight, bias, activation, state=state)
        outputs.append(y)
    return torch.stack(outputs, 1)
