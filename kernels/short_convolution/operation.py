"""The short causal convolution: picks the way it is computed."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from kernels.operands import fused_allowed
from kernels.packing import check_documents, packed
from kernels.short_convolution import chunked

_NARROW, _WIDE = 8, 64
_TYPES = (torch.bfloat16, torch.float16, torch.float32)


def short_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """y_t = activation(bias + sum_w weight_w x_{t - width + 1 + w}), channel by channel; x is zero before its start.

    The convolution before the mixer of H3 (arXiv 2212.14052), Mamba (arXiv 2312.00752) and DeltaNet
    (arXiv 2406.06484). The last weight is the current token's. Its cost grows with the width. On a GPU, filters of up
    to 64 taps have kernels of their own, which are differentiable once.

    Args:
        x: [batch, length, dim].
        weight: [dim, width].
        bias: [dim] or None.
        activation: "silu" or None.
        cu_seqlens: [sequences + 1] integers: x is one row of sequences laid end to end, sequence i from cu_seqlens[i]
            up to cu_seqlens[i + 1], each computed as if it were alone (`kernels.packing.packed`).
        documents: [batch, length] integers, which of its row's documents a token is of; each is computed as if it were
            alone, on a GPU by the same kernels. Not together with cu_seqlens.

    Returns:
        y [batch, length, dim] in x's dtype; computed in float32 (float64 for float64 x).

    Raises:
        ValueError: shapes that disagree, another activation, cu_seqlens or documents that do not fit.
        TypeError: an operand that is not floating point.
    """
    check_documents("short_convolution", documents, x, cu_seqlens)
    if cu_seqlens is not None:
        return packed(
            "short_convolution", lambda own: (short_convolution(own, weight, bias, activation),), cu_seqlens, (x,)
        )[0]
    chunked.check_operands(x, weight, bias, activation)
    # The kernels count within a sequence in 32 bits.
    small = x.shape[1] * max(x.stride(1), x.shape[2]) < 2**31
    if not (fused_allowed() and x.is_cuda and x.dtype in _TYPES and weight.shape[1] <= _WIDE and small):
        return chunked.short_convolution(x, weight, bias, activation, documents)
    if weight.shape[1] == 1:
        documents = None
    y: Tensor = _forward(x, weight, bias, documents, activation == "silu")
    return y


@torch.library.custom_op("asiarch_kernels::short_convolution", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, documents: Tensor | None, silu: bool) -> Tensor:
    from kernels.short_convolution import triton, wide

    with torch.cuda.device(x.device):
        if weight.shape[1] > _NARROW:
            return wide.forward(x, weight, bias, documents, silu)
        return triton.forward(x, weight, bias, documents, silu)


@torch.library.custom_op("asiarch_kernels::short_convolution_backward", mutates_args=())
def _backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, documents: Tensor | None, silu: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from kernels.short_convolution import triton, wide

    with torch.cuda.device(x.device):
        if weight.shape[1] > _NARROW:
            return wide.backward(x, weight, bias, documents, silu, dy)
        return triton.backward(x, weight, bias, documents, silu, dy)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, documents: Tensor | None, silu: bool) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@_backward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, documents: Tensor | None, silu: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return dx, x.new_empty(weight.shape, dtype=torch.float32), x.new_empty(weight.shape[:1], dtype=torch.float32)


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.silu = inputs
    ctx.save_for_backward(*operands)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, documents = ctx.saved_tensors
    dx, by_weight, by_bias = _backward(x, weight, bias, documents, ctx.silu, dy)
    return dx, by_weight.to(weight.dtype), None if bias is None else by_bias.to(bias.dtype), None, None


_forward.register_autograd(_differentiate, setup_context=_keep_operands)
