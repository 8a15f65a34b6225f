"""The delta rule token by token: the definition that the chunked form is tested against."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor

from kernels.delta_rule.chunked import AXES
from kernels.delta_rule.recurrent import step
from kernels.operands import check_shapes, working_dtype
from kernels.packing import check_documents, document_by_document, one_by_one


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
    normalise: bool = False,
    cu_seqlens: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as `kernels.delta_rule.delta_rule`; `chunk_size` has no effect."""
    check_documents("delta_rule", documents, q, cu_seqlens)
    run = partial(delta_rule, scale=scale, normalise=normalise)
    if documents is not None:
        out, last = document_by_document(run, documents, (q, k, v, beta, log_decay), initial_state)
        return out, last
    if cu_seqlens is not None:
        out, last = one_by_one("delta_rule", run, cu_seqlens, (q, k, v, beta, log_decay), initial_state)
        return out, last
    operands = {
        "q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay, "initial_state": initial_state
    }  # fmt: skip
    size = check_shapes("delta_rule", **{name: (operands[name], AXES[name]) for name in AXES})
    dtype = working_dtype(v)
    shape = (size["batch"], size["heads"], size["key"], size["value"])
    state = q.new_zeros(shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(size["length"]):
        token = [None if x is None else x[:, t] for x in (q, k, v, beta, log_decay)]
        out, state = step(*cast(list[Tensor], token), state=state, scale=scale, normalise=normalise)
        outputs.append(out)
    return torch.stack(outputs, 1), state
