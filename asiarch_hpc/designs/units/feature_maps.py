"""Feature maps: what linear attention does to queries and keys so that their products act like weights.

Applied to queries and keys together as [2 * batch, length, dim], head by head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Unit


class ELUFeatures(Unit):
    """ELU plus one: always positive (2006.16236)."""

    KIND = "feature_map"

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return F.elu(X) + 1.0, Z


class SquaredReLUFeatures(Unit):
    """The square of ReLU: sparse and positive (2109.08668)."""

    KIND = "feature_map"

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return F.relu(X).square() + 1e-3, Z


class SoftmaxFeatures(Unit):
    """A softmax over each head's channels (2102.11174)."""

    KIND = "feature_map"

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.softmax(2.0 * self.by_head(X), dim=-1).flatten(-2), Z


class HedgehogFeatures(Unit):
    """A learned map per head whose softmax keeps both signs apart: spiky and positive (2402.04347)."""

    KIND = "feature_map"

    def setup(self) -> None:
        half = self.head_dim // 2
        self.map = self.weight(self.heads, self.head_dim, half, std=self.head_dim**-0.5)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        mapped = torch.einsum("blhi,hio->blho", self.by_head(X), self.map)
        return torch.softmax(torch.cat((mapped, -mapped), dim=-1), dim=-1).flatten(-2), Z


class CosineFeatures(Unit):
    """Unit length per head: products are cosines, with signs (2010.04245)."""

    KIND = "feature_map"

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return F.normalize(self.by_head(X), dim=-1).flatten(-2), Z
