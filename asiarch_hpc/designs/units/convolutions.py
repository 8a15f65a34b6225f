"""Causal convolutions of each channel on its own, and other linear filters of the past."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Unit
from kernels.linear_scan import linear_scan
from kernels.long_convolution import long_convolution
from kernels.packing import previous
from kernels.short_convolution import short_convolution


class ShortConvolution(Unit):
    """A few learned taps per channel, then SiLU or nothing (2312.00752, 2406.06484)."""

    KIND = "convolution"
    ARGUMENTS = {"width": (4, [2, 3, 4, 8]), "activation": ("silu", ["silu", "none"])}

    def setup(self, width: int, activation: str) -> None:
        self.silu = activation == "silu"
        self.taps = self.weight(self.dim, width, std=width**-0.5)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        documents = Z.get("documents")
        return short_convolution(X, self.taps, activation="silu" if self.silu else None, documents=documents), Z


class DilatedConvolution(Unit):
    """A few taps per channel, several positions apart, added to the input (1609.03499)."""

    KIND = "convolution"
    ARGUMENTS = {"width": (4, [2, 3, 4]), "dilation": (4, [2, 4, 8])}

    def setup(self, width: int, dilation: int) -> None:
        self.dilation, self.reach = dilation, (width - 1) * dilation
        self.taps = self.weight(self.dim, 1, width, std=width**-0.5)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        documents, taps = Z.get("documents"), self.taps.to(X.dtype)
        if documents is None:
            past = F.pad(X.transpose(1, 2), (self.reach, 0))
            return X + F.conv1d(past, taps, dilation=self.dilation, groups=self.dim).transpose(1, 2), Z
        Y = torch.addcmul(X, X, taps[:, 0, -1])
        for tap in range(taps.shape[-1] - 1):
            Y = torch.addcmul(Y, previous(X, documents, self.reach - tap * self.dilation), taps[:, 0, tap])
        return Y, Z


class MultiScaleConvolution(Unit):
    """Averages over 2, 4, 8 … past positions, weighed per channel and added to the input."""

    KIND = "convolution"
    ARGUMENTS = {"scales": (3, [2, 3, 4])}

    def setup(self, scales: int) -> None:
        self.mix = self.weight(scales, self.dim, std=0.3)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        Y, mean, reach = X, X, 1
        for share in self.mix.unbind():
            mean = 0.5 * (mean + previous(mean, Z.get("documents"), reach))
            Y = torch.addcmul(Y, mean, share)
            reach = 2 * reach
        return Y, Z


class LongConvolution(Unit):
    """Many taps per channel, started with a decaying envelope, added to the input (2302.06646)."""

    KIND = "convolution"
    ARGUMENTS = {"taps": (64, [32, 64, 128])}

    def setup(self, taps: int) -> None:
        envelope = torch.exp(torch.linspace(0.0, -4.0, taps, device=self.device, dtype=self.dtype))
        self.filter = torch.nn.Parameter(self.weight(self.dim, taps, std=0.3).detach() * envelope)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return X + long_convolution(X, self.filter), Z


class MovingAverage(Unit):
    """Mixes each channel with an exponential moving average of its past; decays and shares are learned (2209.10655)."""

    KIND = "convolution"

    def setup(self) -> None:
        self.forget = self.spread(-1.0, 4.0, self.dim)
        self.share = self.weight(self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        average = linear_scan(X * torch.sigmoid(-self.forget), F.logsigmoid(self.forget), documents=Z.get("documents"))
        return torch.lerp(X, average.to(X.dtype), torch.sigmoid(self.share).to(X.dtype)), Z


class TokenShift(Unit):
    """Mixes each channel with the same channel of the position before, by learned shares (2305.13048)."""

    KIND = "convolution"

    def setup(self) -> None:
        self.share = self.spread(0.0, 1.0, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.lerp(X, previous(X, Z.get("documents")), self.share.to(X.dtype)), Z


class NoConvolution(Unit):
    """Leaves the values as they are."""

    KIND = "convolution"

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return X, Z
