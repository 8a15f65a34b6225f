"""Linear attention: picks the way it is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kernels.linear_attention import chunked
from kernels.operands import addressable, fused_allowed, lowered, working_dtype
from kernels.packing import check_documents, first_tokens, forget_before, packed

_WIDEST = 256
_TYPES = (torch.bfloat16, torch.float16, torch.float32)


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
    """S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t.

    With `bonus` u: o_t = scale (S_{t-1} + diag(u) k_t v_t^T)^T q_t, the state before token t decays and updates it.
    RetNet (arXiv 2307.08621) and Mamba-2 (arXiv 2405.21060) have one decay a head, GLA (arXiv 2312.06635) one a
    channel, RWKV-6 (arXiv 2404.05892) one a channel and a bonus.

    bfloat16, float16 and float32 to widths of 256, on a GPU: Triton kernels (`triton.py`); under autocast products have
    operands of its type. Else `chunked.py`.

    Args:
        q: [batch, length, heads, key].
        k: [batch, length, heads, key].
        v: [batch, length, heads, value].
        log_decay: [batch, length, heads] or [batch, length, heads, key] natural logarithms, at most 0 (-inf forgets
            all), or None for no decay.
        bonus: [heads, key] or None.
        scale: of the output; key ** -0.5 by default.
        initial_state: [batch, heads, key, value] or None for zeros.
        chunk_size: tokens computed at once; changes speed and rounding only; the Triton kernels have their own.
        cu_seqlens: [sequences + 1] integers: the operands are one row of sequences laid end to end, sequence i from
            cu_seqlens[i] up to cu_seqlens[i + 1], each computed as if it were alone; then there is one state a
            sequence. They are computed in batches of similar length (`kernels.packing.packed`).
        documents: [batch, length] integers, which of its row's documents a token is of; each is computed as if it were
            alone, the first one of a row from its initial state, but nan may cross. Not together with cu_seqlens.

    Returns:
        o [batch, length, heads, value] in v's dtype, and the final state [batch, heads, key, value], float64 for
        float64 v and float32 otherwise. After a non-finite k, v or log_decay all results of its head are nan.

    Raises:
        ValueError: shapes that disagree, chunk_size below 1, cu_seqlens or documents that do not fit.
        TypeError: an operand that is not floating point.
    """
    check_documents("linear_attention", documents, q, cu_seqlens)
    if cu_seqlens is not None:
        run = partial(linear_attention, bonus=bonus, scale=scale, chunk_size=chunk_size)
        out, last = packed("linear_attention", run, cu_seqlens, (q, k, v, log_decay), initial_state)
        return out, last
    if documents is not None:
        chunked.check_operands(q, k, v, log_decay, bonus, initial_state)
        run = partial(linear_attention, bonus=bonus, scale=scale, initial_state=initial_state, chunk_size=chunk_size)
        return _apart(run, documents, q, k, v, log_decay, bonus, scale)
    operands = [q, k, v, log_decay, bonus, initial_state]
    if not _on_gpu(operands):
        return chunked.linear_attention(
            q, k, v, log_decay, bonus=bonus, scale=scale, initial_state=initial_state, chunk_size=chunk_size
        )
    chunked.check_operands(q, k, v, log_decay, bonus, initial_state)
    if chunk_size < 1:
        raise ValueError(f"linear_attention: chunk_size is {chunk_size}, expected at least 1")
    # Here, because importing Triton takes time that only work on a GPU should spend.
    from kernels.linear_attention import triton

    # With keys of one channel nothing is a product of matrices, and autocast leaves the like in float32.
    products = lowered(q, k, v) if q.shape[-1] > 1 else (q, k, v)
    out, state = triton.linear_attention(*products, log_decay, bonus=bonus, scale=scale, initial_state=initial_state)
    return out.to(v.dtype), state


def _apart(
    run: Callable[..., tuple[Tensor, Tensor]],
    documents: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    bonus: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Documents begin with a decay to nothing; with a bonus that comes too late for their first tokens, which then
    read their own products alone."""
    decay = forget_before(documents, torch.zeros_like(q[..., 0]) if log_decay is None else log_decay)
    if bonus is None:
        return run(q, k, v, decay)
    begins = first_tokens(documents)
    begins[:, 0] = False
    begins = begins[..., None, None]
    out, state = run(q.masked_fill(begins, 0), k, v, decay)
    dtype = working_dtype(v)
    own = (q.to(dtype) * bonus.to(dtype) * k.to(dtype)).sum(-1, keepdim=True) * v.to(dtype)
    own = own * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.where(begins, own.to(out.dtype), out), state


def _on_gpu(operands: list[Tensor | None]) -> bool:
    """Whether the Triton kernels can take them."""
    given = [x for x in operands if x is not None]
    return (
        fused_allowed()
        and all(x.is_cuda and x.dtype in _TYPES for x in given)
        and all(0 < x.shape[-1] <= _WIDEST for x in given[:3] if x.ndim)
        and addressable(*given[:3])
    )
