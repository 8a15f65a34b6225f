"""Normalisations of each position on its own."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Unit


class RMSNorm(Unit):
    """Divides by the root mean square over all channels, then scales each channel (1910.07467)."""

    KIND = "norm"

    def setup(self) -> None:
        self.scale = self.weight(self.dim, mean=1.0)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return F.rms_norm(X, (self.dim,), self.scale.to(X.dtype), 1e-5), Z


class LayerNorm(Unit):
    """Subtracts the mean and divides by the deviation over all channels, then scales and shifts (1607.06450)."""

    KIND = "norm"

    def setup(self) -> None:
        self.scale = self.weight(self.dim, mean=1.0)
        self.shift = self.weight(self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return F.layer_norm(X, (self.dim,), self.scale, self.shift, 1e-5), Z


class HeadRMSNorm(Unit):
    """RMSNorm within each head; all heads share one scale per channel of a head (2307.08621)."""

    KIND = "norm"

    def setup(self) -> None:
        self.scale = self.weight(self.head_dim, mean=1.0)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return F.rms_norm(self.by_head(X), (self.head_dim,), self.scale.to(X.dtype), 1e-5).flatten(-2), Z


class HeadLayerNorm(Unit):
    """LayerNorm within each head, scaled and shifted per channel: the group norm of RWKV (2404.05892)."""

    KIND = "norm"

    def setup(self) -> None:
        self.scale = self.weight(self.dim, mean=1.0)
        self.shift = self.weight(self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        normal = F.layer_norm(self.by_head(X), (self.head_dim,), eps=64e-5)
        return torch.addcmul(self.shift, normal.flatten(-2), self.scale), Z


class ScaleNorm(Unit):
    """Sets the root mean square over all channels to one learned number (1910.05895)."""

    KIND = "norm"

    def setup(self) -> None:
        self.scale = self.weight(1, mean=1.0)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return F.rms_norm(X, (self.dim,), eps=1e-5) * self.scale, Z


class PartialRMSNorm(Unit):
    """RMSNorm whose root mean square is estimated from the first channels alone (pRMSNorm, 1910.07467)."""

    KIND = "norm"
    ARGUMENTS = {"share": (0.25, [0.125, 0.25, 0.5])}

    def setup(self, share: float) -> None:
        self.measured = max(1, round(self.dim * share))
        self.scale = self.weight(self.dim, mean=1.0)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        size = X[..., : self.measured].square().mean(-1, keepdim=True)
        # Few channels may all be small by chance, hence the large constant.
        return X * torch.rsqrt(size + 1e-2) * self.scale, Z


class DynamicTanh(Unit):
    """No statistics: a tanh with a learned slope, then a scale and shift per channel (2503.10622)."""

    KIND = "norm"
    ARGUMENTS = {"slope": (0.5, [0.25, 0.5, 1.0])}

    def setup(self, slope: float) -> None:
        self.slope = self.weight(1, mean=slope)
        self.scale = self.weight(self.dim, mean=1.0)
        self.shift = self.weight(self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.addcmul(self.shift, torch.tanh(X * self.slope), self.scale), Z


class NoNorm(Unit):
    """Leaves the values as they are."""

    KIND = "norm"

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return X, Z
