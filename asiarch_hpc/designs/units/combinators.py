"""Combinators: mixers made of other mixers."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Recipe, Unit


class MixerSum(Unit):
    """Two mixers side by side; the results are added and scaled to keep their size."""

    KIND = "combinator"
    CHILDREN = {"first": ["mixer", "combinator"], "second": ["mixer", "memory"]}

    def setup(self, first: Recipe, second: Recipe) -> None:
        self.first = self.build(first, self.dim, self.heads)
        self.second = self.build(second, self.dim, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        left, Z = self.first(X, **Z)
        right, Z = self.second(X, **Z)
        return (left + right) * 0.7071, Z


class TokenChoice(Unit):
    """Two mixers side by side; each token sets the share of each, head by head."""

    KIND = "combinator"
    CHILDREN = {"first": ["mixer", "combinator"], "second": ["mixer", "memory"]}

    def setup(self, first: Recipe, second: Recipe) -> None:
        self.first = self.build(first, self.dim, self.heads)
        self.second = self.build(second, self.dim, self.heads)
        self.choose = self.linear(self.dim, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        share = torch.sigmoid(self.choose(X)).unsqueeze(-1)
        left, Z = self.first(X, **Z)
        right, Z = self.second(X, **Z)
        return torch.lerp(self.by_head(left), self.by_head(right), share.to(left.dtype)).flatten(-2), Z


class NormalisedFusion(Unit):
    """Two mixers side by side, each brought to the same size before learned scales weigh them (2411.13676)."""

    KIND = "combinator"
    CHILDREN = {"first": ["mixer", "combinator"], "second": ["mixer", "memory"]}

    def setup(self, first: Recipe, second: Recipe) -> None:
        self.first = self.build(first, self.dim, self.heads)
        self.second = self.build(second, self.dim, self.heads)
        self.first_scale = self.weight(self.dim, mean=0.5)
        self.second_scale = self.weight(self.dim, mean=0.5)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        left, Z = self.first(X, **Z)
        right, Z = self.second(X, **Z)
        left = F.rms_norm(left, (self.dim,), eps=1e-5) * self.first_scale
        return torch.addcmul(left, F.rms_norm(right, (self.dim,), eps=1e-5), self.second_scale), Z


class MixerChain(Unit):
    """Two mixers in a row: the second reads the normalised sum of the input and what the first found."""

    KIND = "combinator"
    CHILDREN = {"first": "mixer", "norm": "norm", "second": ["mixer", "combinator"]}

    def setup(self, first: Recipe, norm: Recipe, second: Recipe) -> None:
        self.first = self.build(first, self.dim, self.heads)
        self.norm = self.build(norm, self.dim, self.heads)
        self.second = self.build(second, self.dim, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found, Z = self.first(X, **Z)
        normal, Z = self.norm(X + found, **Z)
        more, Z = self.second(normal, **Z)
        return found + more, Z


class HeadSplit(Unit):
    """Half of the heads, with their channels, go to each of two mixers; a projection joins them (2411.13676)."""

    KIND = "combinator"
    CHILDREN = {"left": "mixer", "right": "mixer"}

    def setup(self, left: Recipe, right: Recipe) -> None:
        self.left_heads = max(1, self.heads // 2)
        self.right_heads = max(1, self.heads - self.left_heads)
        # One head alone is cut in two; both parts keep an even width.
        self.left_dim = self.left_heads * self.head_dim if self.heads > 1 else 2 * (self.dim // 4)
        self.project = self.linear(self.dim, self.dim)
        self.left = self.build(left, self.left_dim, self.left_heads)
        self.right = self.build(right, self.dim - self.left_dim, self.right_heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = self.project(X).split((self.left_dim, self.dim - self.left_dim), dim=-1)
        x, Z = self.left(x, **Z)
        y, Z = self.right(y, **Z)
        return torch.cat((x, y), dim=-1), Z


class GatedMixer(Unit):
    """A mixer whose result passes a gate that the input sets."""

    KIND = "combinator"
    CHILDREN = {"mixer": ["mixer", "combinator"], "gate": "gate"}

    def setup(self, mixer: Recipe, gate: Recipe) -> None:
        self.mixer = self.build(mixer, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        mixed, Z = self.mixer(X, **Z)
        mixed, Z = self.gate(mixed, source=X, **Z)
        return mixed, Z


class ConvolvedMixer(Unit):
    """A mixer whose input first passes a causal convolution."""

    KIND = "combinator"
    CHILDREN = {"convolution": "convolution", "mixer": ["mixer", "combinator"]}

    def setup(self, convolution: Recipe, mixer: Recipe) -> None:
        self.convolution = self.build(convolution, self.dim, self.heads)
        self.mixer = self.build(mixer, self.dim, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        local, Z = self.convolution(X, **Z)
        mixed, Z = self.mixer(local, **Z)
        return mixed, Z
