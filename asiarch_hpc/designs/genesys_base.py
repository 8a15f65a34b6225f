"""What units of the Genesys template are made of (arXiv 2506.20249, appendix B.3).

Composed designs contain `GAUBase` as text, so this file imports torch alone. `UnitDecl` and `gau_test` are for the
parts of a unit's file that composition leaves out: its declarations and its tests.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Unit -> names of the side values that its _forward takes. A composed design has its own table.
SIDE_INPUTS: dict[str, tuple[str, ...]] = {}


def fitting_heads(heads: int, own: int, embed_dim: int, kwarg_all: dict[str, Any]) -> int:
    """The number of heads for a unit whose own default is `own`: the model's, or fewer, where its own does not fit.

    A head's width must be even twice over, as rotary positions of half a head ask.
    """
    if heads != own or embed_dim % (4 * own) == 0:
        return heads
    most = int(kwarg_all.get("model_heads", heads))
    return next((count for count in range(most, 0, -1) if embed_dim % (4 * count) == 0), most)


class GAUBase(nn.Module):
    """A causal function (X, **Z) -> (Y, Z') with X and Y [batch, length, embed_dim].

    A unit implements `_forward`. It is given the side values in Z that its `_forward` names; what it returns as Z'
    is added to Z. `block_loc` is (index of the block, number of blocks), `kwarg_all` what parents set for the units
    below them.
    """

    factory_kwargs: dict[str, Any]

    def __init__(self, embed_dim: int, block_loc: tuple[int, int], kwarg_all: dict[str, Any]) -> None:
        given = self.__dict__.get("factory_kwargs", {})
        super().__init__()
        self.embed_dim = embed_dim
        self.block_loc = block_loc
        self.kwarg_all = kwarg_all
        self._gau_place: Tensor
        self.register_buffer("_gau_place", torch.zeros((), **given), persistent=False)
        self._note_place()

    def _note_place(self) -> None:
        # Units make tensors with factory_kwargs in _forward too: they must be where the module is by then.
        self.factory_kwargs = {"device": self._gau_place.device, "dtype": self._gau_place.dtype}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GAUBase":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._note_place()
        return self

    def _forward(self, X: Tensor, **Z: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no _forward(self, X, **Z)")

    def forward(self, X: Tensor, **Z: Any) -> tuple[Tensor, dict[str, Any]]:
        name = type(self).__name__
        if X.dim() != 3 or X.shape[-1] != self.embed_dim:
            raise ValueError(f"{name}: X has the shape {list(X.shape)}, expected [batch, length, {self.embed_dim}]")
        named = SIDE_INPUTS.get(name)
        given = Z if named is None else {key: Z[key] for key in named if key in Z}
        result = self._forward(X.to(**self.factory_kwargs), **given)
        Y, new = result if isinstance(result, tuple) else (result, {})
        if Y.shape != X.shape:
            raise ValueError(f"{name}: Y has the shape {list(Y.shape)}, expected that of X, {list(X.shape)}")
        return Y, {**Z, **new}


@dataclass
class UnitDecl:
    """A child that a unit declares: its name, what it must do, and the names of the side values it takes and gives."""

    unitname: str
    requirements: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def gau_test(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function as unit test of the unit in its file; it is called without arguments."""
    return function
