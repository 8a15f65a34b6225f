"""Delta rules: a state that replaces what it holds for a key by the new value."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Recipe, Unit
from kernels.delta_rule import delta_rule


class DeltaRule(Unit):
    """DeltaNet (2406.06484): each token replaces, by a learned share, what the state holds for its key."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution", "norm": "norm", "gate": "gate"}
    ARGUMENTS = {"most": (1.0, [1.0, 2.0])}  # largest share; above 1 a token may turn the sign of what it replaces

    def setup(self, convolution: Recipe, norm: Recipe, gate: Recipe, most: float) -> None:
        self.most = most
        self.qkv = self.linear(self.dim, 3 * self.dim)
        self.convolution = self.build(convolution, 3 * self.dim, 3 * self.heads)
        self.strength = self.linear(self.dim, self.heads)
        self.norm = self.build(norm, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        qkv, Z = self.convolution(self.qkv(X), **Z)
        q, k, v = (self.by_head(x) for x in qkv.chunk(3, dim=-1))
        beta = self.most * torch.sigmoid(self.strength(X))
        o, _ = delta_rule(q, k, v, beta, normalise=True, documents=Z.get("documents"))
        o, Z = self.norm(o.flatten(-2), **Z)
        o, Z = self.gate(o, source=X, **Z)
        return self.out(o), Z


class GatedDeltaRule(Unit):
    """Gated DeltaNet (2412.06464): the delta rule on a state that each token first lets decay, head by head."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution", "norm": "norm", "gate": "gate"}
    ARGUMENTS = {"expand_k": (0.75, [0.5, 0.75, 1.0]), "expand_v": (2.0, [1.0, 2.0]), "most": (1.0, [1.0, 2.0])}

    def setup(
        self, convolution: Recipe, norm: Recipe, gate: Recipe, expand_k: float, expand_v: float, most: float
    ) -> None:
        self.most = most
        key = max(2, 2 * round(self.head_dim * expand_k / 2))
        self.key_dim = self.heads * key
        self.value_dim = self.heads * round(key * expand_v)
        width = 2 * self.key_dim + self.value_dim
        self.qkv = self.linear(self.dim, width)
        self.convolution = self.build(convolution, width, self.heads)
        self.strength = self.linear(self.dim, self.heads)
        self.step = self.linear(self.dim, self.heads)
        # Half-lives start between about one token and a few thousand, as in Mamba-2.
        self.step_bias = self.spread(-7.0, -2.2, self.heads)
        self.log_rate = self.spread(0.0, 2.7, self.heads)
        self.norm = self.build(norm, self.value_dim, self.heads)
        self.gate = self.build(gate, self.value_dim, self.heads, source_dim=self.dim)
        self.out = self.linear(self.value_dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        qkv, Z = self.convolution(self.qkv(X), **Z)
        q, k, v = (self.by_head(x) for x in qkv.split((self.key_dim, self.key_dim, self.value_dim), dim=-1))
        beta = self.most * torch.sigmoid(self.strength(X))
        log_decay = -self.log_rate.exp() * F.softplus(self.step(X) + self.step_bias)
        o, _ = delta_rule(q, k, v, beta, log_decay, normalise=True, documents=Z.get("documents"))
        o, Z = self.norm(o.flatten(-2), **Z)
        o, Z = self.gate(o, source=X, **Z)
        return self.out(o), Z


class DeltaProduct(Unit):
    """Several delta-rule steps per token turn the state further than one can (2502.10297)."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution", "norm": "norm", "gate": "gate"}
    ARGUMENTS = {"steps": (2, [2, 3]), "most": (2.0, [1.0, 2.0])}

    def setup(self, convolution: Recipe, norm: Recipe, gate: Recipe, steps: int, most: float) -> None:
        self.steps, self.most = steps, most
        self.query = self.linear(self.dim, self.dim)
        self.key_value = self.linear(self.dim, 2 * steps * self.dim)
        self.convolution = self.build(convolution, 2 * steps * self.dim, self.heads)
        self.strength = self.linear(self.dim, steps * self.heads)
        self.norm = self.build(norm, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        kv, Z = self.convolution(self.key_value(X), **Z)
        # Each token becomes `steps` tokens in a row; the state is read at the last of them.
        k, v = kv.unflatten(-1, (self.steps, self.heads, -1)).flatten(1, 2).chunk(2, dim=-1)
        beta = torch.unflatten(self.most * torch.sigmoid(self.strength(X)), -1, (self.steps, -1)).flatten(1, 2)
        q = self.by_head(self.query(X)).repeat_interleave(self.steps, dim=1)
        documents = Z.get("documents")
        if documents is not None:
            documents = documents.repeat_interleave(self.steps, dim=1)
        o, _ = delta_rule(q, k, v, beta, normalise=True, documents=documents)
        o, Z = self.norm(o[:, self.steps - 1 :: self.steps].flatten(-2), **Z)
        o, Z = self.gate(o, source=X, **Z)
        return self.out(o), Z
