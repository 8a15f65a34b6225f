"""Plain PyTorch with the operands of its products rounded to bfloat16: as near to exact results as kernels with such
products should come."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FIRST_FACTOR = {  # among the arguments
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.bmm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.baddbmm.default: 1,
}


class RoundedProducts(TorchDispatchMode):
    """Within this context, forward and backward; sums are those of the operands' own type."""

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        first = _FIRST_FACTOR.get(function)
        if first is not None:
            arguments = (*arguments[:first], *(_rounded(x) for x in arguments[first:]))
        return function(*arguments, **(options or {}))


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)
