"""Second derivatives of operations whose kernels are differentiable once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Results = tuple[Tensor, Tensor]


def second_derivatives(
    plain: Callable[..., Results], upstream: Sequence[Tensor | None], operands: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
) -> list[Tensor | None]:  # fmt: skip
    """Derivatives of a first derivative, taken through the plain form.

    Args:
        plain: operands -> output and final state, differentiable twice.
        upstream: gradients of these two.
        operands: of the operation; None where there is none.
        weights: upstream gradients of the operands' gradients.

    Returns:
        One gradient for each of upstream and operands, None where that is None or does not matter.
    """
    with torch.enable_grad():
        outer, inner = ([None if x is None else x.detach().requires_grad_() for x in xs] for xs in (upstream, operands))
        weighted = [(x, g) for x, g in zip(plain(*inner), outer, strict=True) if g is not None]
        first = iter(_derivatives(weighted, [x for x in inner if x is not None]))
        grads = [None if x is None else next(first) for x in inner]
        weighted = [(g, w) for g, w in zip(grads, weights, strict=True) if g is not None and w is not None]
        second = iter(_derivatives(weighted, [x for x in (*outer, *inner) if x is not None]))
    return [None if x is None else next(second) for x in (*outer, *inner)]


def _derivatives(weighted: list[tuple[Tensor, Tensor]], of: list[Tensor]) -> tuple[Any, ...]:
    results, weights = zip(*weighted, strict=True)
    return torch.autograd.grad(results, of, weights, create_graph=True, allow_unused=True)
