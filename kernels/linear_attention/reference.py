"""Linear attention token by token: the definition that the chunked form is tested against."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor

from kernels.linear_attention.chunked import check_operands
from kernels.linear_attention.recurrent import step
from kernels.operands import working_dtype
from kernels.packing import check_documents, document_by_document, one_by_one


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    bonus: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
    cu_seqlens: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as `kernels.linear_attention.linear_attention`; `chunk_size` has no effect."""
    check_documents("linear_attention", documents, q, cu_seqlens)
    run = partial(linear_attention, bonus=bonus, scale=scale)
    if documents is not None:
        out, last = document_by_document(run, documents, (q, k, v, log_decay), initial_state)
        return out, last
    if cu_seqlens is not None:
        out, last = one_by_one("linear_attention", run, cu_seqlens, (q, k, v, log_decay), initial_state)
        return out, last
    size = check_operands(q, k, v, log_decay, bonus, initial_state)
    dtype = working_dtype(v)
    shape = (size["batch"], size["heads"], size["key"], size["value"])
    state = q.new_zeros(shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(size["length"]):
        token = [None if x is None else x[:, t] for x in (q, k, v, log_decay)]
        out, state = step(*cast(list[Tensor], token), state=state, bonus=bonus, scale=scale)
        outputs.append(out)
    return torch.stack(outputs, 1), state
