"""Blocks: how mixers and feed-forwards stand along the residual stream; and stacks, which hold whole blocks.

The root of a tree is either. Stacks do not nest, so that a design has at most two blocks.
"""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
from torch import Tensor

from asiarch_hpc.designs.units.base import Recipe, Unit


class ResidualBlock(Unit):
    """Mixer, then feed-forward, each on normalised input and added to the stream (pre-norm)."""

    KIND = "block"
    CHILDREN = {
        "mixer_norm": "norm",
        "mixer": ["mixer", "combinator"],
        "ffn_norm": "norm",
        "ffn": ["ffn", "memory"],
    }

    def setup(self, mixer_norm: Recipe, mixer: Recipe, ffn_norm: Recipe, ffn: Recipe) -> None:
        self.mixer_norm = self.build(mixer_norm, self.dim, self.heads)
        self.mixer = self.build(mixer, self.dim, self.heads)
        self.ffn_norm = self.build(ffn_norm, self.dim, self.heads)
        self.ffn = self.build(ffn, self.dim, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        change, Z = self.mixer_norm(X, **Z)
        change, Z = self.mixer(change, **Z)
        X = X + change
        change, Z = self.ffn_norm(X, **Z)
        change, Z = self.ffn(change, **Z)
        return X + change, Z


class ParallelBlock(Unit):
    """Mixer and feed-forward read the same normalised input; both are added to the stream (2204.02311)."""

    KIND = "block"
    CHILDREN = {"norm": "norm", "mixer": ["mixer", "combinator"], "ffn": ["ffn", "memory"]}

    def setup(self, norm: Recipe, mixer: Recipe, ffn: Recipe) -> None:
        self.norm = self.build(norm, self.dim, self.heads)
        self.mixer = self.build(mixer, self.dim, self.heads)
        self.ffn = self.build(ffn, self.dim, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        normal, Z = self.norm(X, **Z)
        mixed, Z = self.mixer(normal, **Z)
        fed, Z = self.ffn(normal, **Z)
        return X + mixed + fed, Z


class SandwichBlock(Unit):
    """Mixer, then feed-forward, each normalised before and after, then added to the stream (2105.13290)."""

    KIND = "block"
    CHILDREN = {
        "before_mixer": "norm",
        "mixer": ["mixer", "combinator"],
        "after_mixer": "norm",
        "before_ffn": "norm",
        "ffn": ["ffn", "memory"],
        "after_ffn": "norm",
    }

    def setup(
        self,
        before_mixer: Recipe,
        mixer: Recipe,
        after_mixer: Recipe,
        before_ffn: Recipe,
        ffn: Recipe,
        after_ffn: Recipe,
    ) -> None:
        self.before_mixer = self.build(before_mixer, self.dim, self.heads)
        self.mixer = self.build(mixer, self.dim, self.heads)
        self.after_mixer = self.build(after_mixer, self.dim, self.heads)
        self.before_ffn = self.build(before_ffn, self.dim, self.heads)
        self.ffn = self.build(ffn, self.dim, self.heads)
        self.after_ffn = self.build(after_ffn, self.dim, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        change, Z = self.before_mixer(X, **Z)
        change, Z = self.mixer(change, **Z)
        change, Z = self.after_mixer(change, **Z)
        X = X + change
        change, Z = self.before_ffn(X, **Z)
        change, Z = self.ffn(change, **Z)
        change, Z = self.after_ffn(change, **Z)
        return X + change, Z


class LayerScaleBlock(Unit):
    """Pre-norm mixer and feed-forward whose results are scaled per channel before they are added (2103.17239)."""

    KIND = "block"
    CHILDREN = {
        "mixer_norm": "norm",
        "mixer": ["mixer", "combinator"],
        "ffn_norm": "norm",
        "ffn": ["ffn", "memory"],
    }
    ARGUMENTS = {"start": (0.5, [0.25, 0.5, 1.0])}

    def setup(self, mixer_norm: Recipe, mixer: Recipe, ffn_norm: Recipe, ffn: Recipe, start: float) -> None:
        self.mixer_norm = self.build(mixer_norm, self.dim, self.heads)
        self.mixer = self.build(mixer, self.dim, self.heads)
        self.mixer_scale = self.weight(self.dim, mean=start)
        self.ffn_norm = self.build(ffn_norm, self.dim, self.heads)
        self.ffn = self.build(ffn, self.dim, self.heads)
        self.ffn_scale = self.weight(self.dim, mean=start)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        change, Z = self.mixer_norm(X, **Z)
        change, Z = self.mixer(change, **Z)
        X = torch.addcmul(X, change, self.mixer_scale)
        change, Z = self.ffn_norm(X, **Z)
        change, Z = self.ffn(change, **Z)
        return torch.addcmul(X, change, self.ffn_scale), Z


class MacaronBlock(Unit):
    """The mixer stands between two feed-forwards of half weight (1906.02762)."""

    KIND = "block"
    CHILDREN = {"norm": "norm", "first_ffn": "ffn", "mixer": ["mixer", "combinator"], "second_ffn": ["ffn", "memory"]}

    def setup(self, norm: Recipe, first_ffn: Recipe, mixer: Recipe, second_ffn: Recipe) -> None:
        self.first_norm = self.build(norm, self.dim, self.heads)
        self.first_ffn = self.build(first_ffn, self.dim, self.heads)
        self.mixer_norm = self.build(norm, self.dim, self.heads)
        self.mixer = self.build(mixer, self.dim, self.heads)
        self.second_norm = self.build(norm, self.dim, self.heads)
        self.second_ffn = self.build(second_ffn, self.dim, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        change, Z = self.first_norm(X, **Z)
        change, Z = self.first_ffn(change, **Z)
        X = torch.add(X, change, alpha=0.5)
        change, Z = self.mixer_norm(X, **Z)
        change, Z = self.mixer(change, **Z)
        X = X + change
        change, Z = self.second_norm(X, **Z)
        change, Z = self.second_ffn(change, **Z)
        return torch.add(X, change, alpha=0.5), Z


class LocalContextBlock(Unit):
    """Adds a causal convolution of the normalised stream to it before the inner block (Canon layers, 2512.17351)."""

    KIND = "stack"
    CHILDREN = {"norm": "norm", "convolution": "convolution", "block": "block"}

    def setup(self, norm: Recipe, convolution: Recipe, block: Recipe) -> None:
        self.norm = self.build(norm, self.dim, self.heads)
        self.convolution = self.build(convolution, self.dim, self.heads)
        self.block = self.build(block, self.dim, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        local, Z = self.norm(X, **Z)
        local, Z = self.convolution(local, **Z)
        X, Z = self.block(X + local, **Z)
        return X, Z


class BlockPair(Unit):
    """Two different blocks, one after the other, as in hybrid stacks (2406.07887)."""

    KIND = "stack"
    CHILDREN = {"first": "block", "second": "block"}

    def setup(self, first: Recipe, second: Recipe) -> None:
        self.first = self.build(first, self.dim, self.heads)
        self.second = self.build(second, self.dim, self.heads)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        X, Z = self.first(X, **Z)
        X, Z = self.second(X, **Z)
        return X, Z


class EmbeddingSkipBlock(Unit):
    """Runs the inner block, then mixes the block's own input back in by a learned share per channel."""

    KIND = "stack"
    CHILDREN = {"block": "block"}

    def setup(self, block: Recipe) -> None:
        self.block = self.build(block, self.dim, self.heads)
        self.share = self.weight(self.dim, mean=-2.0)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        Y, Z = self.block(X, **Z)
        return torch.lerp(Y, X, torch.sigmoid(self.share).to(Y.dtype)), Z
