"""Linear attention a chunk at a time, in plain PyTorch. README.md derives it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.chunks import causal_mask, join, onwards, pairwise_decay, split
from kernels.operands import check_shapes, clamp_log_decay, quarantine, without_autocast, working_dtype

AXES = {
    "q": "batch length heads key",
    "k": "batch length heads key",
    "v": "batch length heads value",
    "log_decay": "batch length heads key",
    "bonus": "heads key",
    "initial_state": "batch heads key value",
}
# Tokens whose decays are compared pairwise, channel by channel, when each channel has its own.
_BLOCK = 8


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
    """`kernels.linear_attention.linear_attention` on any device, with derivatives of any order."""
    size = check_operands(q, k, v, log_decay, bonus, initial_state)
    if chunk_size < 1:
        raise ValueError(f"linear_attention: chunk_size is {chunk_size}, expected at least 1")
    dtype = working_dtype(v)
    q = q.to(dtype) * (size["key"] ** -0.5 if scale is None else scale)
    with without_autocast(v):
        if initial_state is None:
            state = q.new_zeros(size["batch"], size["heads"], size["key"], size["value"])
        else:
            state = initial_state.to(dtype)
        if bonus is None:
            out, state = _attend(q, k, v, log_decay, state, chunk_size)
        else:
            # The state before a token is the one that the token before it would have read.
            first = torch.einsum("bhk,bhkv->bhv", q[:, 0], state).unsqueeze(1)
            out, state = _attend(F.pad(q[:, 1:], (0, 0, 0, 0, 0, 1)), k, v, log_decay, state, chunk_size)
            out = torch.cat((first, out[:, :-1]), 1)
            out = torch.addcmul(out, (q * k.to(dtype) * bonus.to(dtype)).sum(-1, keepdim=True), v.to(dtype))
    return out.to(v.dtype), state


def check_operands(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, bonus: Tensor | None, initial_state: Tensor | None
) -> dict[str, int]:
    """Sizes of all axes; raises for shapes that disagree."""
    operands = {"q": q, "k": k, "v": v, "log_decay": log_decay, "bonus": bonus, "initial_state": initial_state}
    axes = AXES if log_decay is None or log_decay.dim() != 3 else AXES | {"log_decay": "batch length heads"}
    return check_shapes("linear_attention", **{name: (operands[name], axes[name]) for name in axes})


def _attend(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Without bonus and scale, q and state in the working precision, which the results have."""
    dtype, (batch, length) = q.dtype, q.shape[:2]
    diagonal = log_decay is not None and log_decay.dim() == 4
    chunk = min(chunk_size, length, _BLOCK) if diagonal else min(chunk_size, length)
    blocks = -(-min(chunk_size, length) // chunk)
    query = split(q, chunk, dtype, multiple=blocks)
    tokens = [split(k, chunk, dtype, multiple=blocks), split(v, chunk, dtype, multiple=blocks)]
    if log_decay is not None:
        decay = clamp_log_decay(log_decay, dtype)
        tokens.append(split(decay if diagonal else decay.unsqueeze(-1), chunk, dtype, multiple=blocks))
    mark, tokens = quarantine(*tokens)
    if diagonal:
        out, last = _diagonal(query, tokens, state.flatten(0, 1), blocks)
    else:
        out, last = _scalar(query, tokens, state.flatten(0, 1))
    if mark is not None:
        out, last = out + onwards(mark), last + onwards(mark)[-1, :, -1:]
    return join(out, batch, length), last.view(state.shape)


def _scalar(query: Tensor, tokens: list[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    """query [n, rows, chunk, key]; tokens: k, v and perhaps log-decay [n, rows, chunk, 1]; state [rows, key, value]."""
    k, v = tokens[:2]
    attention = query @ k.mT
    if len(tokens) == 3:
        decay, from_start = pairwise_decay(tokens[2].squeeze(-1))
        from_start = from_start.unsqueeze(-1)
        attention, query, k = attention * decay, query * from_start, k * decay[..., -1, :].unsqueeze(-1)
        states, state = _carry(k.mT @ v, from_start[..., -1:, :], state)
    else:
        attention = attention * causal_mask(k.shape[2], k)
        states, state = _carry(k.mT @ v, None, state)
    return attention @ v + query @ states, state


def _diagonal(query: Tensor, tokens: list[Tensor], state: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """As `_scalar` with log-decay [n, rows, chunk, key]; `blocks` chunks make a group.

    All groups run through their blocks at once, from a state of zeros; then the state runs through the groups.
    """
    k, v, log_decay = tokens
    upto = log_decay.cumsum(-2)
    whole = upto[..., -1:, :]
    added = (k * (whole - upto).exp()).mT @ v
    added, whole = (x.reshape(-1, blocks, *x.shape[1:]) for x in (added, whole.mT))
    from_group = whole.cumsum(1).exp()
    within, last = _carry(added, whole.exp(), torch.zeros_like(added[:, 0]), dim=1)
    groups, state = _carry(last, from_group[:, -1], state)
    up_to_block = F.pad(from_group[:, :-1], (0,) * 6 + (1, 0), value=1.0)
    states = torch.addcmul(within, up_to_block, groups.unsqueeze(1)).flatten(0, 1)
    out = _decayed_scores(query, k, upto) @ v + (query * upto.exp()) @ states
    return torch.addcmul(out, (query * k).sum(-1, keepdim=True), v), state


class _DecayedScores(torch.autograd.Function):
    """A_ij = sum_d q_id k_jd exp(G_id - G_jd) for j < i, else 0; all operands are [..., tokens, dim].

    As one step it keeps one tensor [..., tokens, tokens, dim] instead of five. The gradient of G is
    q dA/dq - k dA/dk.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, upto: Tensor) -> Tensor:
        decay = _decay_by_channel(upto)
        ctx.save_for_backward(q, k, upto, decay)
        return ((decay * k.unsqueeze(-3)) @ q.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, upto, decay = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives it has to be a function of `upto`
            decay = _decay_by_channel(upto)
        weight = grad.unsqueeze(-1) * decay
        grad_q = (weight * k.unsqueeze(-3)).sum(-2)
        grad_k = (weight * q.unsqueeze(-2)).sum(-3)
        return grad_q, grad_k, q * grad_q - k * grad_k


_decayed_scores = cast(Callable[..., Tensor], _DecayedScores.apply)


def _decay_by_channel(upto: Tensor) -> Tensor:
    """exp(G_id - G_jd) for j < i, else 0: [..., tokens, tokens, dim]. Few enough terms that float32 keeps them."""
    mask = causal_mask(upto.shape[-2], upto, diagonal=-1).unsqueeze(-1)
    return ((upto.unsqueeze(-2) - upto.unsqueeze(-3)) * mask).exp() * mask


def _carry(added: Tensor, kept: Tensor | None, state: Tensor, *, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Runs state = kept * state + added along `dim`; the states before each step, stacked, and the last one."""
    states = []
    factors = repeat(None) if kept is None else kept.unbind(dim)
    for addition, factor in zip(added.unbind(dim), factors, strict=False):
        states.append(state)
        state = state + addition if factor is None else torch.addcmul(addition, factor, state)
    return torch.stack(states, dim), state
