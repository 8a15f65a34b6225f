"""The delta rule token by token: the definition that the chunked form is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.delta_rule.chunked import AXES, unit_length
from kernels.operands import check_shapes, without_autocast, working_dtype


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
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as `kernels.delta_rule.delta_rule`; `chunk_size` has no effect."""
    operands = {
        "q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay, "initial_state": initial_state
    }  # fmt: skip
    size = check_shapes("delta_rule", **{name: (operands[name], AXES[name]) for name in AXES})
    dtype = working_dtype(v)
    scale = size["key"] ** -0.5 if scale is None else scale
    shape = (size["batch"], size["heads"], size["key"], size["value"])
    state = q.new_zeros(shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    outputs = []
    with without_autocast(v):
        for t in range(size["length"]):
            query, key, value, strength = (x[:, t].to(dtype) for x in (q, k, v, beta))
            if normalise:
                query, key = unit_length(query), unit_length(key)
            if log_decay is not None:
                state = state * log_decay[:, t].to(dtype).exp()[..., None, None]
            stored = torch.einsum("bhkv,bhk->bhv", state, key)
            state = state + key[..., None] * ((value - stored) * strength[..., None])[..., None, :]
            outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, query))
    return torch.stack(outputs, 1).to(v.dtype), state
