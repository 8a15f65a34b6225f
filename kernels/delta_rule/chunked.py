"""The delta rule a chunk at a time, in plain PyTorch. README.md derives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from kernels.chunks import causal_mask, document_decay, join, onwards, pairwise_decay, split
from kernels.operands import check_shapes, clamp_log_decay, quarantine, without_autocast, working_dtype

# Of the squared length that queries and keys are divided by, as in flash-linear-attention's l2norm.
EPS = 1e-6
AXES = {
    "q": "batch length heads key",
    "k": "batch length heads key",
    "v": "batch length heads value",
    "beta": "batch length heads",
    "log_decay": "batch length heads",
    "initial_state": "batch heads key value",
}


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
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`kernels.delta_rule.delta_rule` on any device, with derivatives of any order; documents or decays, not both."""
    operands = {
        "q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay, "initial_state": initial_state
    }  # fmt: skip
    size = check_shapes("delta_rule", **{name: (operands[name], AXES[name]) for name in AXES})
    if chunk_size < 1:
        raise ValueError(f"delta_rule: chunk_size is {chunk_size}, expected at least 1")
    batch, length, heads, key, value = (size[axis] for axis in ("batch", "length", "heads", "key", "value"))
    dtype, rows = working_dtype(v), batch * heads
    chunk = min(chunk_size, length)
    scale = key**-0.5 if scale is None else scale
    with without_autocast(v):
        query = split(q, chunk, dtype)
        tokens = [split(k, chunk, dtype), split(v, chunk, dtype), split(beta.unsqueeze(-1), chunk, dtype)]
        if log_decay is not None:
            tokens.append(split(clamp_log_decay(log_decay, dtype).unsqueeze(-1), chunk, dtype))
        mark, tokens = quarantine(*tokens)
        if normalise:
            query, tokens[0] = unit_length(query), unit_length(tokens[0])
        query = query * scale
        state = query.new_zeros(rows, key, value) if initial_state is None else initial_state.to(dtype).flatten(0, 1)
        decays = None
        if log_decay is not None:
            decays = pairwise_decay(tokens.pop().squeeze(-1))
        elif documents is not None:
            decays = document_decay(documents, heads, chunk, query)
        out, state = _chunked(query, tokens, state, decays)
        if mark is not None:
            out, state = out + onwards(mark), state + onwards(mark)[-1, :, -1:]
    return join(out, batch, length).to(v.dtype), state.view(batch, heads, key, value)


def unit_length(x: Tensor) -> Tensor:
    """x / sqrt(sum(x²) + EPS) over the last axis; nan where the sum overflows."""
    squares = x.square().sum(-1, keepdim=True)
    return x * ((squares + EPS).rsqrt() + squares * 0.0)


def _chunked(
    query: Tensor, tokens: list[Tensor], state: Tensor, decays: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """query [n, rows, chunk, key]; tokens: key, value, beta, alike; state [rows, key, value]; decays as
    `pairwise_decay` gives them."""
    k, v, beta = tokens
    key = k.shape[-1]
    erased, written = k * beta, v * beta
    overlap, attention = erased @ k.mT, query @ k.mT
    if decays is not None:
        decay, from_start = decays
        overlap, attention = overlap * decay, attention * decay
        from_start = from_start.unsqueeze(-1)
        erased, query, k = erased * from_start, query * from_start, k * decay[..., -1, :].unsqueeze(-1)
        kept = from_start[..., -1:, :] * torch.eye(key, dtype=k.dtype, device=k.device)
    else:
        attention = attention * causal_mask(k.shape[2], k)
        kept = torch.eye(key, dtype=k.dtype, device=k.device).expand(k.shape[0], 1, key, key)
    solved = _unit_lower_solve(overlap, torch.cat((erased, written), -1))
    # Long keys make the state grow, and here past the largest number within a chunk.
    mark, (solved,) = quarantine(solved)
    read, added = torch.split(attention @ solved, [key, v.shape[-1]], -1)
    forget, add = torch.split(k.mT @ solved, [key, v.shape[-1]], -1)
    states = []
    for transition, addition in zip((kept - forget).unbind(), add.unbind(), strict=True):
        states.append(state)
        state = torch.baddbmm(addition, transition, state)
    out = (query - read) @ torch.stack(states) + added
    if mark is not None:
        out, state = out + onwards(mark), state + onwards(mark)[-1, :, -1:]
    return out, state


class _UnitLowerSolve(torch.autograd.Function):
    """X with (I + tril(A, -1)) X = B.

    PyTorch's own function and gradient do the same, about three times slower: LAPACK works on columns, and only the
    transposed system, solved from the right, reads and writes contiguous rows as columns without copies.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        x: Tensor = torch.linalg.solve_triangular(a.mT, b.mT, upper=True, left=False, unitriangular=True).mT
        ctx.save_for_backward(a, x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, x = ctx.saved_tensors
        grad_b = torch.linalg.solve_triangular(a, grad.mT, upper=False, left=False, unitriangular=True).mT
        return (grad_b @ x.mT) * -causal_mask(a.shape[-1], a, diagonal=-1), grad_b


_unit_lower_solve = cast(Callable[..., Tensor], _UnitLowerSolve.apply)
