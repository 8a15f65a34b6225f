"""The public functions: checks, and which way they are computed."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from kernels.operands import check_shapes, fused_allowed
from kernels.rms_norm import plain

_TYPES = (torch.bfloat16, torch.float16, torch.float32)
# A row is held in registers.
_WIDEST = 8192


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """y = x / sqrt(mean of x² over the last axis + eps) · weight (Zhang and Sennrich, arXiv 1910.07467).

    Args:
        x: [..., dim].
        weight: [dim], or None for ones.

    Returns:
        [..., dim] in x's dtype; computed in float32 (float64 for float64 x). On a GPU once differentiable.

    Raises:
        ValueError: shapes that disagree.
        TypeError: an operand that is not floating point.
    """
    return _normed("rms_norm", x, weight, None, eps, False)


def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    activation: Literal["silu", "sigmoid"] = "silu",
) -> Tensor:
    """`rms_norm` of x, times activation(gate): the output of gated linear attention (arXiv 2312.06635).

    Args:
        x: [..., dim].
        gate: [..., dim].
        weight: [dim], or None for ones.
        activation: of the gate.

    Returns:
        [..., dim] in x's dtype; computed in float32 (float64 for float64 x). On a GPU once differentiable.

    Raises:
        ValueError: shapes that disagree, another activation.
        TypeError: an operand that is not floating point.
    """
    if activation not in ("silu", "sigmoid"):
        raise ValueError(f"gated_rms_norm: activation is {activation!r}, expected 'silu' or 'sigmoid'")
    if gate.shape != x.shape:
        raise ValueError(f"gated_rms_norm: gate has shape {list(gate.shape)}, expected {list(x.shape)}, that of x")
    return _normed("gated_rms_norm", x, weight, gate, eps, activation == "silu")


def _normed(name: str, x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float, silu: bool) -> Tensor:
    rows, gates = x.reshape(-1, x.shape[-1]), None if gate is None else gate.reshape(-1, x.shape[-1])
    check_shapes(name, x=(rows, "tokens dim"), gate=(gates, "tokens dim"), weight=(weight, "dim"))
    if not (fused_allowed() and x.is_cuda and x.dtype in _TYPES and x.shape[-1] <= _WIDEST):
        return plain.normed(x, weight, gate, eps, silu)
    y: Tensor = _forward(rows, weight, gates, eps, silu)
    return y.view(x.shape)


@torch.library.custom_op("asiarch_kernels::rms_norm", mutates_args=())
def _forward(x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float, silu: bool) -> Tensor:
    from kernels.rms_norm import triton

    with torch.cuda.device(x.device):
        return triton.forward(x, weight, gate, eps, silu)


@torch.library.custom_op("asiarch_kernels::rms_norm_backward", mutates_args=())
def _backward(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float, silu: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from kernels.rms_norm import triton

    with torch.cuda.device(x.device):
        return triton.backward(x, weight, gate, eps, silu, dy)


@_forward.register_fake
def _(x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float, silu: bool) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@_backward.register_fake
def _(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float, silu: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    by_weight = x.new_empty(0 if weight is None else x.shape[1], dtype=torch.float32)
    by_gate = x.new_empty(0) if gate is None else torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), by_weight, by_gate


def _keep_operands(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor | None, float, bool], output: Tensor) -> None:
    x, weight, gate, ctx.eps, ctx.silu = inputs
    ctx.save_for_backward(x, weight, gate)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, gate = ctx.saved_tensors
    dx, by_weight, by_gate = _backward(x, weight, gate, ctx.eps, ctx.silu, dy)
    return dx, None if weight is None else by_weight.to(weight.dtype), None if gate is None else by_gate, None, None


_forward.register_autograd(_differentiate, setup_context=_keep_operands)
