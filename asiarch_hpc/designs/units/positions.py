"""Positions: what queries and keys, given together as [2 * batch, length, dim], learn about where they stand.

A unit either changes X or leaves `log_decay` [heads] in Z: what a key loses per step of distance. Softmax
attention adds it to its scores, linear attention decays its state by it.

`documents` in Z stay [batch, length]. Whoever turns queries and keys counts on from one document to the next, since
products see differences alone.
"""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Unit
from kernels.packing import places


class Rotary(Unit):
    """Rotates pairs of channels by angles that grow with position, so that products see distances (2104.09864)."""

    KIND = "position"
    ARGUMENTS = {"base": (10000.0, [100.0, 1000.0, 10000.0, 500000.0])}

    def setup(self, base: float) -> None:
        self.base = base

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        half = self.head_dim // 2
        channels = torch.arange(half, device=X.device, dtype=torch.promote_types(X.dtype, torch.float32))
        steps = torch.arange(X.shape[1], device=X.device, dtype=torch.promote_types(X.dtype, torch.float32))
        angles = torch.outer(steps, torch.exp(channels * (-math.log(self.base) / half)))
        cos, sin = angles.cos().to(X.dtype).unsqueeze(1), angles.sin().to(X.dtype).unsqueeze(1)
        left, right = self.by_head(X).chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).flatten(-2), Z


class PartialRotary(Unit):
    """Rotates only the first half of the pairs; the others compare content alone (2204.06745)."""

    KIND = "position"
    ARGUMENTS = {"base": (10000.0, [100.0, 1000.0, 10000.0])}

    def setup(self, base: float) -> None:
        self.base = base

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        pairs = (self.head_dim // 2 + 1) // 2
        channels = torch.arange(pairs, device=X.device, dtype=torch.promote_types(X.dtype, torch.float32))
        steps = torch.arange(X.shape[1], device=X.device, dtype=torch.promote_types(X.dtype, torch.float32))
        angles = torch.outer(steps, torch.exp(channels * (-math.log(self.base) / pairs)))
        cos, sin = angles.cos().to(X.dtype).unsqueeze(1), angles.sin().to(X.dtype).unsqueeze(1)
        heads = self.by_head(X)
        left, right, rest = heads[..., :pairs], heads[..., pairs : 2 * pairs], heads[..., 2 * pairs :]
        turned = torch.cat((left * cos - right * sin, right * cos + left * sin, rest), dim=-1)
        return turned.flatten(-2), Z


class LearnedRotary(Unit):
    """Rotates pairs of channels with learned speeds, one for each pair of each head."""

    KIND = "position"

    def setup(self) -> None:
        half = self.head_dim // 2
        speeds = torch.exp(torch.linspace(0.0, -math.log(1000.0), half, device=self.device, dtype=self.dtype))
        self.speed = torch.nn.Parameter(speeds.repeat(self.heads, 1))

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        steps = torch.arange(X.shape[1], device=X.device, dtype=torch.promote_types(X.dtype, torch.float32))
        angles = steps[:, None, None] * self.speed
        cos, sin = angles.cos().to(X.dtype), angles.sin().to(X.dtype)
        left, right = self.by_head(X).chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).flatten(-2), Z


class Sinusoids(Unit):
    """Adds sines and cosines of the position, scaled by a learned number per channel (1706.03762)."""

    KIND = "position"

    def setup(self) -> None:
        self.scale = self.weight(self.dim, mean=0.5)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        half = self.head_dim // 2
        channels = torch.arange(half, device=X.device, dtype=torch.promote_types(X.dtype, torch.float32))
        steps = torch.arange(X.shape[1], device=X.device, dtype=channels.dtype).unsqueeze(0)
        documents = Z.get("documents")
        if documents is not None:
            steps = places(documents).to(channels.dtype).repeat(len(X) // len(documents), 1)
        angles = steps.unsqueeze(-1) * torch.exp(channels * (-math.log(10000.0) / half))
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1).to(X.dtype).repeat(1, 1, self.heads)
        return torch.addcmul(X, waves, self.scale), Z


class DistanceDecay(Unit):
    """Lets each head forget with distance at a learned rate: ALiBi (2108.12409) that starts as in RetNet."""

    KIND = "position"

    def setup(self) -> None:
        self.rate = self.spread(-1.0, -6.0, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return X, {**Z, "log_decay": -F.softplus(self.rate)}


class NoPosition(Unit):
    """No positions: order shows only through causality (2305.19466)."""

    KIND = "position"

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return X, Z
