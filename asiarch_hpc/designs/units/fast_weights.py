"""Test-time training: the state is a small model that learns from the tokens as they pass."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
from torch import Tensor

from asiarch_hpc.designs.units.base import Recipe, Unit
from kernels.ttt_linear import ttt_linear


class TTTLinear(Unit):
    """TTT-Linear (2407.04620): a linear model per head takes a gradient step on each token's own task."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution", "position": "position", "norm": "norm", "gate": "gate"}
    ARGUMENTS = {"rate": (1.0, [0.5, 1.0])}

    def setup(self, convolution: Recipe, position: Recipe, norm: Recipe, gate: Recipe, rate: float) -> None:
        self.rate = rate / self.head_dim
        self.qkv = self.linear(self.dim, 3 * self.dim)
        self.convolution = self.build(convolution, 2 * self.dim, 2 * self.heads)
        self.position = self.build(position, self.dim, self.heads)
        self.step = self.linear(self.dim, self.heads)
        self.start = self.weight(self.heads, self.head_dim, self.head_dim, std=0.02)
        self.start_bias = self.weight(self.heads, self.head_dim)
        self.scale = self.weight(self.heads, self.head_dim, mean=1.0)
        self.shift = self.weight(self.heads, self.head_dim)
        self.norm = self.build(norm, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        qk, v = self.qkv(X).split((2 * self.dim, self.dim), dim=-1)
        qk, Z = self.convolution(qk, **Z)
        qk, Z = self.position(torch.cat(qk.chunk(2, dim=-1)), **Z)
        q, k = self.by_head(qk).chunk(2)
        eta = self.rate * torch.sigmoid(self.step(X))
        o = ttt_linear(q, k, self.by_head(v), eta, self.start, self.start_bias, self.scale, self.shift)
        o, Z = self.norm(o.flatten(-2), **Z)
        o, Z = self.gate(o, source=X, **Z)
        return self.out(o), Z
