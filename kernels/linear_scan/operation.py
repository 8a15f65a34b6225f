"""The linear recurrence: picks the way it is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.linear_scan import chunked
from kernels.operands import fused_allowed
from kernels.packing import check_documents, forget_before, packed

# Tokens for each of which the forward kernel keeps one state for the backward kernel.
KEPT_EVERY = 8
_TYPES = (torch.bfloat16, torch.float16, torch.float32)


def linear_scan(
    x: Tensor, log_decay: Tensor, *, cu_seqlens: Tensor | None = None, documents: Tensor | None = None
) -> Tensor:
    """h_t = exp(log_decay_t) h_{t-1} + x_t, from h_{-1} = 0.

    The recurrence of S4D, S5 and RG-LRU layers and of exponential moving averages. On a GPU, bfloat16, float16 and
    float32 have kernels of their own, which are differentiable once.

    Args:
        x: [batch, length, dim].
        log_decay: [batch, length, dim], or [dim] for a constant one; natural logarithms, at most 0 (-inf forgets
            all).
        cu_seqlens: [sequences + 1] integers: x and log_decay are one row of sequences laid end to end, sequence i from
            cu_seqlens[i] up to cu_seqlens[i + 1], each computed as if it were alone (`kernels.packing.packed`).
        documents: [batch, length] integers, which of its row's documents a token is of; each is computed as if it were
            alone, but nan may cross. Not together with cu_seqlens.

    Returns:
        h [batch, length, dim] in x's dtype; computed in float32 (float64 for float64 x).

    Raises:
        ValueError: shapes that disagree, cu_seqlens or documents that do not fit.
        TypeError: an operand that is not floating point.
    """
    check_documents("linear_scan", documents, x, cu_seqlens)
    if cu_seqlens is not None:
        constant = (log_decay,) if log_decay.dim() == 1 else ()
        tokens = (x,) if constant else (x, log_decay)
        return packed("linear_scan", lambda *own: (linear_scan(*own, *constant),), cu_seqlens, tokens)[0]
    if documents is not None:
        chunked.check_operands(x, log_decay)
        log_decay = forget_before(documents, log_decay.expand_as(x))
    if not _fused(x, log_decay):
        return chunked.linear_scan(x, log_decay)
    chunked.check_operands(x, log_decay)
    h: Tensor = _forward(x, log_decay)[0]
    return h


def _fused(x: Tensor, log_decay: Tensor) -> bool:
    """Whether the kernels can take them. They count within a sequence in 32 bits."""
    return (
        fused_allowed()
        and all(t.is_cuda and t.dtype in _TYPES for t in (x, log_decay))
        and x.dim() == 3
        and all(x.shape[1] * max(t.stride(1), x.shape[2]) < 2**31 for t in (x, log_decay) if t.dim() == 3)
    )


@torch.library.custom_op("asiarch_kernels::linear_scan", mutates_args=())
def _forward(x: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    from kernels.linear_scan import triton

    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return triton.forward(x, log_decay)


@torch.library.custom_op("asiarch_kernels::linear_scan_backward", mutates_args=())
def _backward(x: Tensor, log_decay: Tensor, kept: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
    from kernels.linear_scan import triton

    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return triton.backward(x, log_decay, kept, dh)


@_forward.register_fake
def _(x: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, dim = x.shape
    kept = x.new_empty(batch, (length + KEPT_EVERY - 1) // KEPT_EVERY, dim, dtype=torch.float32)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), kept


@_backward.register_fake
def _(x: Tensor, log_decay: Tensor, kept: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if log_decay.dim() == 1 else log_decay.dtype
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(log_decay.shape, dtype=dtype, device=x.device),
    )


def _keep_operands(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dh: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    x, log_decay, kept = ctx.saved_tensors
    dx, by_decay = _backward(x, log_decay, kept, dh)
    return dx, by_decay.to(log_decay.dtype)


_forward.register_autograd(_differentiate, setup_context=_keep_operands)
