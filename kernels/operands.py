"""What all operations do to their arguments: shape checks, working precision, non-finite tokens; and which form of
an operation may be used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

# exp() of anything below is exactly zero, so clamping at it changes no result, and -inf becomes a number.
_ZERO_BELOW = {torch.float32: -104.0, torch.float64: -746.0}

_fused = find_spec("triton") is not None


def fused_allowed() -> bool:
    """Whether operations may use their Triton kernels."""
    return _fused


@contextmanager
def plain_forms() -> Iterator[None]:
    """Keeps operations to their plain forms, in this process and those that it forks meanwhile: for work on many
    shapes, for each of which Triton would compile for seconds."""
    global _fused
    before, _fused = _fused, False
    try:
        yield
    finally:
        _fused = before


def check_shapes(operation: str, **operands: tuple[Tensor | None, str]) -> dict[str, int]:
    """Checks every operand against its axes, named in words, and returns the size of each named axis.

    Args:
        operation: name for the message.
        operands: name=(tensor or None, "batch length heads key"); equal words must have equal sizes.

    Raises:
        ValueError: wrong number of axes, disagreeing sizes, an empty axis.
        TypeError: not a floating point tensor.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, spec) in operands.items():
        if tensor is None:
            continue
        axes = spec.split()
        if not tensor.is_floating_point():
            raise TypeError(f"{operation}: {name} has dtype {tensor.dtype}, expected a floating point tensor")
        shape = tuple(tensor.shape)
        if len(shape) != len(axes):
            raise ValueError(f"{operation}: {name} has shape {list(shape)}, expected the axes [{', '.join(axes)}]")
        for axis, size in zip(axes, shape, strict=True):
            if size < 1 or sizes.setdefault(axis, size) != size:
                expected = sizes[axis] if size else "at least 1"
                raise ValueError(f"{operation}: {name} has shape {list(shape)}, {axis} is {size}, expected {expected}")
    return sizes


def working_dtype(tensor: Tensor) -> torch.dtype:
    """float64 stays, everything else is computed in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def adjacent(tensor: Tensor) -> Tensor:
    """As kernels read operands: strides may be any, but for that of the last axis."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def output_gradient(grad: Tensor | None, like: Tensor) -> Tensor:
    """As kernels that compute places in 32 bits read the gradient of a result with the shape of `like`; zeros for None.
    Operands with wider strides are not sent to them, but a gradient may have any."""
    if grad is None:
        return torch.zeros_like(like, memory_format=torch.contiguous_format)
    return adjacent(grad) if addressable(grad) else grad.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """As kernels read what may be missing and whose strides they do not ask for."""
    return None if tensor is None else tensor.contiguous()


def product_type(*operands: Tensor) -> tuple[torch.dtype, str]:
    """Of the operands of products on a GPU, and Triton's name of their precision: products of bfloat16 tensors are
    bfloat16's, those of others tf32's, for float32 in three terms."""
    wide = operands[0].dtype
    for operand in operands[1:]:
        wide = torch.promote_types(wide, operand.dtype)
    if wide == torch.bfloat16:
        return torch.bfloat16, "tf32"
    return torch.float32, {torch.float16: "tf32", torch.float32: "tf32x3"}[wide]


def addressable(*operands: Tensor) -> bool:
    """Whether 32 bits hold every place within a sequence, which the kernels compute them in; [batch, length, ...]."""
    return all(
        sum(size * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)) < 2**31 for x in operands
    )


def lowered(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Operands of products in an enclosing autocast's type, as torch's own products have them; float64 stays."""
    kind = q.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # of meta, which has none, that may not be asked
        return q, k, v
    q, k, v = (x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(kind)) for x in (q, k, v))
    return q, k, v


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Keeps an enclosing autocast from lowering the products inside an operation."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def clamp_log_decay(log_decay: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts log-decays to the working precision; -inf and others with a zero exponential become finite."""
    return log_decay.to(dtype).clamp(min=_ZERO_BELOW[dtype])


def quarantine(*tokens: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    """Takes non-finite tokens out of the products that mask with zeros, because 0 * nan is nan.

    A token counts as non-finite when the sum of its squares is, in the working precision.

    Args:
        tokens: contiguous tensors [..., tokens, dim].

    Returns:
        The mark [..., tokens], nan for such tokens and 0 for others, to be added to all results from that token
        on, or None when it is known that there are no such tokens; and the tensors with such tokens set to zero.
    """
    detached = [tensor.detach() for tensor in tokens]
    # Where looking at a value does not wait for a device, the usual case costs next to nothing.
    if tokens[0].device.type == "cpu" and math.isfinite(sum(float(x.flatten().dot(x.flatten())) for x in detached)):
        return None, list(tokens)
    mark = torch.stack([(x * x).sum(-1) for x in detached]).sum(0) * 0
    damaged = (mark != 0).unsqueeze(-1)
    return mark, [tensor.masked_fill(damaged, 0) for tensor in tokens]
