"""TTT-Linear for one token, for decoding."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from kernels.operands import check_shapes, without_autocast, working_dtype
from kernels.ttt_linear.chunked import AXES, EPSILON


class State(NamedTuple):
    """W [batch, heads, dim, dim] and b [batch, heads, dim] now and when the mini-batch began, and how many tokens of
    the mini-batch are read."""

    weight: Tensor
    bias: Tensor
    weight_before: Tensor
    bias_before: Tensor
    read: int


def initial_state(weight: Tensor, bias: Tensor, batch: int) -> State:
    """Before the first token, from weight [heads, dim, dim] and bias [heads, dim]."""
    dtype = working_dtype(weight)
    weight, bias = (x.to(dtype).expand(batch, *x.shape) for x in (weight, bias))
    return State(weight, bias, weight, bias, 0)


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    *,
    state: State,
    chunk_size: int = 16,
) -> tuple[Tensor, State]:
    """One token of `kernels.ttt_linear.ttt_linear`. README.md derives the gradient.

    Args:
        q, k, v: [batch, heads, dim].
        eta: [batch, heads].
        ln_weight, ln_bias: [heads, dim].
        state: of the step before, or from `initial_state`.
        chunk_size: tokens of a mini-batch; it changes the result.

    Returns:
        o [batch, heads, dim] in v's dtype, and the next state.

    Raises:
        ValueError: shapes that disagree.
        TypeError: an operand that is not floating point.
    """
    operands = {"q": q, "k": k, "v": v, "eta": eta, "ln_weight": ln_weight, "ln_bias": ln_bias}
    given = {name: (x, AXES[name].replace(" length", "")) for name, x in operands.items()}
    check_shapes("ttt_linear step", **given, state=(state.weight, "batch heads dim dim"))
    dtype, dim = working_dtype(v), (q.shape[-1],)
    weight, bias, before = state.weight, state.bias, (state.weight_before, state.bias_before)
    if state.read % chunk_size == 0:
        before = weight, bias
    with without_autocast(v):
        query, key, target, rate, gain, shift = (x.to(dtype) for x in operands.values())
        hidden = (key.unsqueeze(-2) @ before[0]).squeeze(-2) + before[1]
        hidden = hidden - hidden.mean(-1, keepdim=True)
        inverse = (hidden.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
        normed = hidden * inverse
        slope = gain * (normed * gain + shift + key - target)
        along = normed * (slope * normed).mean(-1, keepdim=True)
        gradient = rate.unsqueeze(-1) * (slope - slope.mean(-1, keepdim=True) - along) * inverse
        weight = weight - key.unsqueeze(-1) * gradient.unsqueeze(-2)
        bias = bias - gradient
        read = F.layer_norm((query.unsqueeze(-2) @ weight).squeeze(-2) + bias, dim, eps=EPSILON)
        return (query + read * gain + shift).to(v.dtype), State(weight, bias, *before, state.read % chunk_size + 1)
