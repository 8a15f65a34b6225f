"""State-space mixers."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Recipe, Unit
from kernels.linear_attention import linear_attention


class Mamba2(Unit):
    """Mamba-2 (2405.21060): a scalar decay per head and step sizes per token; heads share the ways in and out."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution", "gate": "gate", "norm": "norm"}
    ARGUMENTS = {"expand": (2.0, [1.0, 2.0]), "state": (32, [16, 32, 64])}

    def setup(self, convolution: Recipe, gate: Recipe, norm: Recipe, expand: float, state: int) -> None:
        self.state = state
        self.inner = self.heads * round(self.head_dim * expand)
        self.xbc = self.linear(self.dim, self.inner + 2 * state)
        self.convolution = self.build(convolution, self.inner + 2 * state, 1)
        self.step = self.linear(self.dim, self.heads)
        self.step_bias = self.spread(-7.0, -2.2, self.heads)
        self.log_rate = self.spread(0.0, 2.7, self.heads)
        self.direct = self.weight(self.heads, mean=1.0)
        self.gate = self.build(gate, self.inner, self.heads, source_dim=self.dim)
        self.norm = self.build(norm, self.inner, self.heads)
        self.out = self.linear(self.inner, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        xbc, Z = self.convolution(self.xbc(X), **Z)
        x, b, c = xbc.split((self.inner, self.state, self.state), dim=-1)
        x = self.by_head(x)
        step = F.softplus(self.step(X) + self.step_bias)
        b, c = (shared.unsqueeze(2).expand(-1, -1, self.heads, -1) for shared in (b, c))
        put_in, log_decay = x * step.unsqueeze(-1), -self.log_rate.exp() * step
        o, _ = linear_attention(c, b, put_in, log_decay, scale=1.0, documents=Z.get("documents"))
        o = o + x * self.direct.unsqueeze(-1)
        o, Z = self.gate(o.flatten(-2), source=X, **Z)
        o, Z = self.norm(o, **Z)
        return self.out(o), Z
