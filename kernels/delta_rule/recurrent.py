"""The delta rule for one token, for decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.delta_rule.chunked import AXES, unit_length
from kernels.operands import check_shapes, without_autocast, working_dtype


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    state: Tensor,
    scale: float | None = None,
    normalise: bool = False,
) -> tuple[Tensor, Tensor]:
    """One token of `kernels.delta_rule.delta_rule`: given the state after the tokens before, what it gives there.

    Args:
        q: [batch, heads, key].
        k: [batch, heads, key].
        v: [batch, heads, value].
        beta: [batch, heads].
        log_decay: [batch, heads] or None.
        state: [batch, heads, key, value], the final one of `delta_rule` or of the step before; zeros at the start.
        scale: of the output; key ** -0.5 by default.
        normalise: divides q and k by their lengths first.

    Returns:
        o [batch, heads, value] in v's dtype, and the state [batch, heads, key, value] after the token, float64 for
        float64 v and float32 otherwise.

    Raises:
        ValueError: shapes that disagree.
        TypeError: an operand that is not floating point.
    """
    operands = {"q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay}
    axes = {name: AXES[name].replace(" length", "") for name in operands}
    given = {name: (x, axes[name]) for name, x in operands.items()}
    size = check_shapes("delta_rule step", **given, state=(state, AXES["initial_state"]))
    dtype = working_dtype(v)
    scale = size["key"] ** -0.5 if scale is None else scale
    with without_autocast(v):
        query, key, value, strength, state = (x.to(dtype) for x in (q, k, v, beta, state))
        if normalise:
            query, key = unit_length(query), unit_length(key)
        if log_decay is not None:
            state = state * log_decay.to(dtype).exp()[..., None, None]
        stored = torch.einsum("bhkv,bhk->bhv", state, key)
        state = state + key[..., None] * ((value - stored) * strength[..., None])[..., None, :]
        return (scale * torch.einsum("bhkv,bhk->bhv", state, query)).to(v.dtype), state
