"""The public function: checks, and which way it is computed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.operands import fused_allowed, working_dtype

_TYPES = (torch.bfloat16, torch.float16, torch.float32)


def swiglu(x: Tensor) -> Tensor:
    """y = silu(first half of x's last axis) · second half: a SwiGLU feed-forward between its products
    (Shazeer, arXiv 2002.05202).

    Args:
        x: [..., 2 dim].

    Returns:
        [..., dim] in x's dtype; computed in float32 (float64 for float64 x). On a GPU once differentiable.

    Raises:
        ValueError: an odd last axis.
        TypeError: not floating point.
    """
    if not x.is_floating_point():
        raise TypeError(f"swiglu: x has dtype {x.dtype}, expected a floating point tensor")
    if x.ndim < 1 or x.shape[-1] % 2 or not x.shape[-1]:
        raise ValueError(f"swiglu: x has shape {list(x.shape)}, expected an even last axis: gates, then values")
    if not (fused_allowed() and x.is_cuda and x.dtype in _TYPES and x.numel()):
        gate, value = x.to(working_dtype(x)).chunk(2, dim=-1)
        return (F.silu(gate) * value).to(x.dtype)
    y: Tensor = _forward(x.reshape(-1, x.shape[-1]))
    return y.view(*x.shape[:-1], x.shape[-1] // 2)


@torch.library.custom_op("asiarch_kernels::swiglu", mutates_args=())
def _forward(x: Tensor) -> Tensor:
    from kernels.swiglu import triton

    with torch.cuda.device(x.device):
        return triton.forward(x)


@torch.library.custom_op("asiarch_kernels::swiglu_backward", mutates_args=())
def _backward(x: Tensor, dy: Tensor) -> Tensor:
    from kernels.swiglu import triton

    with torch.cuda.device(x.device):
        return triton.backward(x, dy)


@_forward.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2)


@_backward.register_fake
def _(x: Tensor, dy: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _differentiate(ctx: Any, dy: Tensor) -> Tensor:
    gradient: Tensor = _backward(ctx.saved_tensors[0], dy)
    return gradient


_forward.register_autograd(_differentiate, setup_context=_keep)
