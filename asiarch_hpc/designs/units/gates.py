"""Gates scale a result X by what their `source` [batch, length, source_dim] says; without a source, X itself."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Unit
from kernels.packing import previous


class SigmoidGate(Unit):
    """Scales each channel by the sigmoid of a projection of the source (1505.00387)."""

    KIND = "gate"

    def setup(self, source_dim: int | None = None) -> None:
        self.project = self.linear(source_dim or self.dim, self.dim)

    def forward(self, X: Tensor, source: Tensor | None = None, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return X * torch.sigmoid(self.project(X if source is None else source)), Z


class SiLUGate(Unit):
    """Scales each channel by the SiLU of a projection of the source (2307.08621, 2312.06635)."""

    KIND = "gate"

    def setup(self, source_dim: int | None = None) -> None:
        self.project = self.linear(source_dim or self.dim, self.dim)

    def forward(self, X: Tensor, source: Tensor | None = None, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return X * F.silu(self.project(X if source is None else source)), Z


class GELUGate(Unit):
    """Scales each channel by the GELU of a projection of the source (TTT layers, 2407.04620)."""

    KIND = "gate"

    def setup(self, source_dim: int | None = None) -> None:
        self.project = self.linear(source_dim or self.dim, self.dim)

    def forward(self, X: Tensor, source: Tensor | None = None, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return X * F.gelu(self.project(X if source is None else source)), Z


class HeadGate(Unit):
    """Scales each head as a whole by a sigmoid that starts half open (2505.06708)."""

    KIND = "gate"

    def setup(self, source_dim: int | None = None) -> None:
        self.project = self.linear(source_dim or self.dim, self.heads)

    def forward(self, X: Tensor, source: Tensor | None = None, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        opening = 2.0 * torch.sigmoid(self.project(X if source is None else source))
        return (self.by_head(X) * opening.unsqueeze(-1)).flatten(-2), Z


class LowRankGate(Unit):
    """A sigmoid gate whose projection goes through few channels (RWKV-7, 2503.14456)."""

    KIND = "gate"
    ARGUMENTS = {"rank": (16, [8, 16, 32])}

    def setup(self, rank: int, source_dim: int | None = None) -> None:
        self.down = self.linear(source_dim or self.dim, rank)
        self.up = self.linear(rank, self.dim)
        self.bias = self.weight(self.dim)

    def forward(self, X: Tensor, source: Tensor | None = None, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        opening = self.up(self.down(X if source is None else source)) + self.bias
        return X * torch.sigmoid(opening), Z


class ChangeGate(Unit):
    """Opens where the source differs from the position before it: a sigmoid gate on the difference."""

    KIND = "gate"

    def setup(self, source_dim: int | None = None) -> None:
        self.project = self.linear(source_dim or self.dim, self.dim)
        self.bias = self.weight(self.dim, mean=1.0)

    def forward(self, X: Tensor, source: Tensor | None = None, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        source = X if source is None else source
        change = source - previous(source, Z.get("documents"))
        return X * torch.sigmoid(self.project(change) + self.bias), Z


class NoGate(Unit):
    """Leaves the result as it is."""

    KIND = "gate"

    def forward(self, X: Tensor, source: Tensor | None = None, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return X, Z
