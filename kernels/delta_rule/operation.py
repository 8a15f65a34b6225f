"""The delta rule: picks the way it is computed."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kernels.delta_rule import chunked
from kernels.operands import addressable, check_shapes, fused_allowed, lowered
from kernels.packing import check_documents, forget_before, packed

# The state of one head's step has to fit into a multiprocessor.
_WIDEST = {torch.bfloat16: 256, torch.float16: 128, torch.float32: 128}
_SHARED_BYTES = 147_456  # that heads wider than 128 take of it


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
    """S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T with a_t = exp(log_decay_t); o_t = scale S_t^T q_t.

    DeltaNet (arXiv 2406.06484) without decay, Gated DeltaNet (arXiv 2412.06464) with one. With |k| = 1,
    which `normalise` or the caller sees to, and beta in [0, 2] the state cannot grow.

    bfloat16 to widths of 256 where they fit, float16 and float32 to 128, on a GPU: Triton kernels (`triton.py`), whose
    products have bfloat16 operands where q, k and v do, as autocast makes them, and tf32's or float32's precision
    elsewhere. Else `chunked.py`.

    Args:
        q: [batch, length, heads, key].
        k: [batch, length, heads, key].
        v: [batch, length, heads, value].
        beta: [batch, length, heads], how much of the value stored under the key is replaced.
        log_decay: [batch, length, heads] natural logarithms, at most 0 (-inf forgets all), or None.
        scale: of the output; key ** -0.5 by default.
        initial_state: [batch, heads, key, value] or None for zeros.
        chunk_size: tokens computed at once; changes speed and rounding only; the Triton kernels have their own.
        normalise: divides q and k by their lengths first, sqrt(sum of squares + 1e-6) in float32.
        cu_seqlens: [sequences + 1] integers: the operands are one row of sequences laid end to end, sequence i from
            cu_seqlens[i] up to cu_seqlens[i + 1], each computed as if it were alone; then there is one state a
            sequence. They are computed in batches of similar length (`kernels.packing.packed`).
        documents: [batch, length] integers, which of its row's documents a token is of; each is computed as if it were
            alone, the first one of a row from its initial state, but nan may cross. Not together with cu_seqlens.

    Returns:
        o [batch, length, heads, value] in v's dtype, and the final state [batch, heads, key, value], float64 for
        float64 v and float32 otherwise. After a non-finite k, v, beta or log_decay all results of its head are nan;
        with `normalise`, the output of a q whose square overflows is.

    Raises:
        ValueError: shapes that disagree, chunk_size below 1, cu_seqlens or documents that do not fit.
        TypeError: an operand that is not floating point.
    """
    check_documents("delta_rule", documents, q, cu_seqlens)
    if documents is not None and log_decay is not None and log_decay.shape == q.shape[:3]:
        log_decay, documents = forget_before(documents, log_decay), None
    operands = {
        "q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay, "initial_state": initial_state
    }  # fmt: skip
    if cu_seqlens is not None:
        run = partial(delta_rule, scale=scale, chunk_size=chunk_size, normalise=normalise)
        out, last = packed("delta_rule", run, cu_seqlens, (q, k, v, beta, log_decay), initial_state)
        return out, last
    products = lowered(q, k, v) if q.is_cuda else (q, k, v)
    if not _on_gpu([*products, beta, log_decay, initial_state]):
        return chunked.delta_rule(
            q, k, v, beta, log_decay, scale=scale, initial_state=initial_state, chunk_size=chunk_size,
            normalise=normalise, documents=documents,
        )  # fmt: skip
    size = check_shapes("delta_rule", **{name: (operands[name], chunked.AXES[name]) for name in chunked.AXES})
    if chunk_size < 1:
        raise ValueError(f"delta_rule: chunk_size is {chunk_size}, expected at least 1")
    # Here, because importing Triton takes time that only work on a GPU should spend.
    from kernels.delta_rule import triton

    scale = size["key"] ** -0.5 if scale is None else scale
    out, state = triton.delta_rule(
        *products, beta, log_decay, documents, initial_state, scale=scale, normalise=normalise
    )
    return out.to(v.dtype), state


def _on_gpu(operands: list[Tensor | None]) -> bool:
    """Whether the Triton kernels can take them."""
    given = [x for x in operands if x is not None]
    return (
        fused_allowed()
        and all(x.is_cuda and x.dtype in _WIDEST for x in given)
        and all(0 < x.shape[-1] <= min(_WIDEST[y.dtype] for y in given[:3]) for x in given[:3] if x.ndim)
        and addressable(*given[:3])
        and (max(x.shape[-1] for x in given[:3] if x.ndim) <= 128 or _shared_bytes(given[0].device) >= _SHARED_BYTES)
    )


def _shared_bytes(device: torch.device) -> int:
    """The shared memory that one program can have: 227 kB on Hopper, 99 on consumers' GPUs."""
    found: int = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 49_152)
    return found


# What torch.compiler.assume_constant_result does, which loads the compiler, about a second's work, to do it.
_shared_bytes._dynamo_marked_constant = True  # type: ignore[attr-defined]
