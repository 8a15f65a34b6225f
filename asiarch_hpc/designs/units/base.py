"""What all units share. Composed designs contain these classes, so they import torch alone."""

from typing import Any

import torch
from torch import Tensor, nn


class Unit(nn.Module):
    """A causal function (X, **Z) -> (X, Z) with X [batch, length, dim] and named side values Z.

    A unit that reads a side value takes it out of Z; everything else in Z is passed on. `heads` divides `dim`.

    `documents` in Z, which stays there, says which of its row's documents a token is of: [batch, length] integers.
    Nothing crosses from one to another.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        layer_idx: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **options: object,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{type(self).__name__}: dim={dim} is not a multiple of heads={heads}")
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads
        self.layer_idx = layer_idx
        self.device, self.dtype = device, dtype
        self.setup(**options)

    def setup(self, *args: Any, **options: Any) -> None:
        """Makes the parameters and children; each unit has options of its own."""

    @classmethod
    def of(cls, **options: object) -> "Recipe":
        """The unit with its arguments and children chosen, to be built where its parent wants it."""
        return Recipe(cls, options)

    def build(self, recipe: "Recipe", dim: int, heads: int, **options: object) -> "Unit":
        """A child of this unit for inputs [batch, length, dim]."""
        return recipe(dim, heads, self.layer_idx, self.device, self.dtype, **options)

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        """A projection without bias."""
        return nn.Linear(inputs, outputs, bias=False, device=self.device, dtype=self.dtype)

    def weight(self, *shape: int, mean: float = 0.0, std: float = 0.0) -> nn.Parameter:
        """A parameter of the given shape, drawn from a normal distribution (constant where `std` is 0)."""
        values = torch.full(shape, mean, device=self.device, dtype=self.dtype)
        return nn.Parameter(values + std * torch.randn_like(values) if std else values)

    def spread(self, low: float, high: float, count: int) -> nn.Parameter:
        """A parameter [count] of evenly spaced values."""
        return nn.Parameter(torch.linspace(low, high, count, device=self.device, dtype=self.dtype))

    def hidden(self, multiple: float) -> int:
        """A hidden width of about `multiple * dim`, a multiple of 8."""
        return max(8, round(self.dim * multiple / 8) * 8)

    def by_head(self, X: Tensor) -> Tensor:
        """[batch, length, heads * n] -> [batch, length, heads, n]."""
        return torch.unflatten(X, -1, (self.heads, -1))


class Recipe:
    """A unit class with its options."""

    def __init__(self, unit: type[Unit], options: dict[str, object]) -> None:
        self.unit, self.options = unit, options

    def __call__(
        self,
        dim: int,
        heads: int,
        layer_idx: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **options: object,
    ) -> Unit:
        return self.unit(dim, heads, layer_idx, device, dtype, **self.options, **options)
