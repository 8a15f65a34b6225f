"""The linear recurrence by doubling, in plain PyTorch. README.md derives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.operands import check_shapes, working_dtype


def linear_scan(x: Tensor, log_decay: Tensor) -> Tensor:
    """`kernels.linear_scan.linear_scan` on any device, by a parallel scan (Hillis and Steele 1986, Blelloch 1990)."""
    check_operands(x, log_decay)
    dtype = working_dtype(x)
    return _scan(x.to(dtype), log_decay.to(dtype).exp()).to(x.dtype)


def check_operands(x: Tensor, log_decay: Tensor) -> dict[str, int]:
    """Sizes of all axes; raises for shapes that disagree."""
    axes = "dim" if log_decay.dim() == 1 else "batch length dim"
    return check_shapes("linear_scan", x=(x, "batch length dim"), log_decay=(log_decay, axes))


class _Scan(torch.autograd.Function):
    """The gradient of a scan is a scan from the end: G_t = dh_t + a_{t+1} G_{t+1}."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: Tensor) -> Tensor:
        h = _double(x, decay)
        ctx.save_for_backward(decay, h)
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        decay, h = ctx.saved_tensors
        reverse = decay if decay.dim() == 1 else F.pad(decay[:, 1:].flip(1), (0, 0, 1, 0))
        grad_x = _scan(grad.flip(1), reverse).flip(1)
        product = grad_x[:, 1:] * h[:, :-1]
        if decay.dim() == 1:
            return grad_x, product.sum((0, 1))
        return grad_x, F.pad(product, (0, 0, 1, 0))


_scan = cast(Callable[..., Tensor], _Scan.apply)


def _double(h: Tensor, decay: Tensor) -> Tensor:
    """After the pass with step s, h_t holds the last 2s terms of its sum, and decay_t the product of 2s decays."""
    length, step = h.shape[1], 1
    while step < length:
        if decay.dim() == 1:
            factor, decay = decay, decay * decay
        else:
            factor = decay[:, step:]
            decay = torch.cat((decay[:, :step], factor * decay[:, :-step]), 1)
        h = torch.cat((h[:, :step], torch.addcmul(h[:, step:], factor, h[:, :-step])), 1)
        step *= 2
    return h
