"""Linear attention for one token, for decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linear_attention.chunked import AXES
from kernels.operands import check_shapes, without_autocast, working_dtype


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    state: Tensor,
    bonus: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of `kernels.linear_attention.linear_attention`: given the state after the tokens before, what it gives
    there.

    Args:
        q: [batch, heads, key].
        k: [batch, heads, key].
        v: [batch, heads, value].
        log_decay: [batch, heads] or [batch, heads, key], or None for no decay.
        state: [batch, heads, key, value], that of the step before or the final one of `linear_attention`; zeros at the
            start.
        bonus: [heads, key] or None.
        scale: of the output; key ** -0.5 by default.

    Returns:
        o [batch, heads, value] in v's dtype, and the state [batch, heads, key, value] after the token, float64 for
        float64 v and float32 otherwise.

    Raises:
        ValueError: shapes that disagree.
        TypeError: an operand that is not floating point.
    """
    by_head = log_decay is not None and log_decay.dim() == 2
    axes = {name: AXES[name].replace(" length", "") for name in ("q", "k", "v", "log_decay")}
    size = check_shapes(
        "linear_attention step",
        q=(q, axes["q"]),
        k=(k, axes["k"]),
        v=(v, axes["v"]),
        log_decay=(log_decay, "batch heads" if by_head else axes["log_decay"]),
        bonus=(bonus, AXES["bonus"]),
        state=(state, AXES["initial_state"]),
    )
    dtype = working_dtype(v)
    scale = size["key"] ** -0.5 if scale is None else scale
    with without_autocast(v):
        query, key, value, state = (x.to(dtype) for x in (q, k, v, state))
        written = key.unsqueeze(-1) * value.unsqueeze(-2)
        seen = None if bonus is None else state + bonus.to(dtype).unsqueeze(-1) * written
        if log_decay is not None:
            decay = log_decay.to(dtype).exp()
            state = state * (decay[..., None, None] if by_head else decay.unsqueeze(-1))
        state = state + written
        o = scale * torch.einsum("bhkv,bhk->bhv", state if seen is None else seen, query)
        return o.to(v.dtype), state
