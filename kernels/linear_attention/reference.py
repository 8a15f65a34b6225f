"""Linear attention token by token: the definition that the chunked form is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear_attention.chunked import check_operands
from kernels.operands import without_autocast, working_dtype


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
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as `kernels.linear_attention.linear_attention`; `chunk_size` has no effect."""
    size = check_operands(q, k, v, log_decay, bonus, initial_state)
    dtype = working_dtype(v)
    scale = size["key"] ** -0.5 if scale is None else scale
    shape = (size["batch"], size["heads"], size["key"], size["value"])
    state = q.new_zeros(shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    outputs = []
    with without_autocast(v):
        for t in range(size["length"]):
            query, key, value = (x[:, t].to(dtype) for x in (q, k, v))
            written = key.unsqueeze(-1) * value.unsqueeze(-2)
            seen = None if bonus is None else state + bonus.to(dtype).unsqueeze(-1) * written
            if log_decay is not None:
                decay = log_decay[:, t].to(dtype).exp()
                state = state * (decay[..., None, None] if decay.dim() == 2 else decay.unsqueeze(-1))
            state = state + written
            outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state if seen is None else seen, query))
    return torch.stack(outputs, 1).to(v.dtype), state
