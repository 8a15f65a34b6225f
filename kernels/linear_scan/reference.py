"""The linear recurrence token by token: the definition that the parallel form is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear_scan.chunked import check_operands
from kernels.linear_scan.recurrent import step
from kernels.operands import working_dtype
from kernels.packing import check_documents, document_by_document, one_by_one


def linear_scan(
    x: Tensor, log_decay: Tensor, *, cu_seqlens: Tensor | None = None, documents: Tensor | None = None
) -> Tensor:
    """Same arguments and result as `kernels.linear_scan.linear_scan`."""
    check_documents("linear_scan", documents, x, cu_seqlens)
    constant = (log_decay,) if log_decay.dim() == 1 else ()
    tokens = (x,) if constant else (x, log_decay)
    if cu_seqlens is not None:
        return one_by_one("linear_scan", lambda *own: (linear_scan(*own, *constant),), cu_seqlens, tokens)[0]
    if documents is not None:
        return document_by_document(lambda *own: (linear_scan(*own, *constant),), documents, tokens)[0]
    check_operands(x, log_decay)
    state = torch.zeros_like(x[:, 0], dtype=working_dtype(x))
    outputs = []
    for t in range(x.shape[1]):
        h, state = step(x[:, t], log_decay if log_decay.dim() == 1 else log_decay[:, t], state=state)
        outputs.append(h)
    return torch.stack(outputs, 1)
