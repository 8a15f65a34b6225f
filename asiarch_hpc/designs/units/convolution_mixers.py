"""Mixers built on convolutions and shifts."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Recipe, Unit
from kernels.long_convolution import long_convolution
from kernels.packing import previous


class GatedConvolution(Unit):
    """A convolution between two gates that the token sets, as in LFM2 (2511.23404)."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution"}

    def setup(self, convolution: Recipe) -> None:
        self.project = self.linear(self.dim, 3 * self.dim)
        self.convolution = self.build(convolution, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        before, after, v = self.project(X).chunk(3, dim=-1)
        v, Z = self.convolution(before * v, **Z)
        return self.out(after * v), Z


class Hyena(Unit):
    """Hyena (2302.10866): gates around a long filter that a small network computes from the distance."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution"}
    ARGUMENTS = {"waves": (8, [4, 8, 16]), "width": (16, [16, 32])}

    def setup(self, convolution: Recipe, waves: int, width: int) -> None:
        self.waves = waves
        self.project = self.linear(self.dim, 3 * self.dim)
        self.convolution = self.build(convolution, 3 * self.dim, 3 * self.heads)
        self.filter_in = self.linear(2 * waves, width)
        self.filter_out = self.linear(width, self.dim)
        self.fade = self.spread(-6.0, -1.0, self.dim)
        self.direct = self.weight(self.dim, mean=1.0)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        xs, Z = self.convolution(self.project(X), **Z)
        before, after, v = xs.chunk(3, dim=-1)
        v = before * v
        steps = torch.arange(X.shape[1], device=X.device, dtype=self.fade.dtype)
        wave = torch.arange(self.waves, device=X.device, dtype=self.fade.dtype)
        angles = torch.outer(steps, torch.exp(wave * (-math.log(1000.0) / self.waves)))
        taps = self.filter_out(torch.sin(self.filter_in(torch.cat((angles.sin(), angles.cos()), dim=-1))))
        taps = taps * torch.exp(-steps.unsqueeze(-1) * self.fade.exp())
        v = long_convolution(v, taps.T) + v * self.direct
        return self.out(after * v), Z


class DynamicConvolution(Unit):
    """Each head weighs its latest positions by a softmax that the token predicts (1901.10430)."""

    KIND = "mixer"
    CHILDREN = {"gate": "gate"}
    ARGUMENTS = {"width": (6, [4, 6, 8])}

    def setup(self, gate: Recipe, width: int) -> None:
        self.width = width
        self.value = self.linear(self.dim, self.dim)
        self.predict = self.linear(self.dim, self.heads * width)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        weights = torch.softmax(self.by_head(self.predict(X)), dim=-1)
        documents = Z.get("documents")
        if documents is not None:
            before = F.pad(documents, (self.width - 1, 0)).unfold(1, self.width, 1)
            weights = weights.masked_fill((before != documents.unsqueeze(-1)).unsqueeze(2), 0.0)
        past = F.pad(self.by_head(self.value(X)), (0, 0, 0, 0, self.width - 1, 0)).unfold(1, self.width, 1)
        o = torch.einsum("blhdw,blhw->blhd", past, weights).flatten(-2)
        o, Z = self.gate(o, source=X, **Z)
        return self.out(o), Z


class HeadShift(Unit):
    """Head h sees the position 2^h before, mixed with its own by learned shares: no products of tokens."""

    KIND = "mixer"
    CHILDREN = {"gate": "gate"}

    def setup(self, gate: Recipe) -> None:
        self.value = self.linear(self.dim, self.dim)
        self.share = self.weight(self.dim, mean=0.5, std=0.1)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        v, documents = self.value(X), Z.get("documents")
        heads = v.chunk(self.heads, dim=-1)
        past = torch.cat([previous(x, documents, 2 ** (head % 8)) for head, x in enumerate(heads)], dim=-1)
        o, Z = self.gate(torch.lerp(v, past, self.share.to(v.dtype)), source=X, **Z)
        return self.out(o), Z
