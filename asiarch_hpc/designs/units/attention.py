"""Softmax attention and its relatives."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Recipe, Unit
from kernels.causal_attention import causal_attention


class SoftmaxAttention(Unit):
    """Multi-head causal softmax attention (1706.03762); quadratic in length."""

    KIND = "mixer"
    CHILDREN = {"position": "position", "qk_norm": "norm", "gate": "gate"}

    def setup(self, position: Recipe, qk_norm: Recipe, gate: Recipe) -> None:
        self.qkv = self.linear(self.dim, 3 * self.dim)
        self.qk_norm = self.build(qk_norm, self.dim, self.heads)
        self.position = self.build(position, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v = self.qkv(X).chunk(3, dim=-1)
        qk, Z = self.qk_norm(torch.cat((q, k)), **Z)
        qk, Z = self.position(qk, **Z)
        q, k = self.by_head(qk).chunk(2)
        v = self.by_head(v)
        o = causal_attention(q, k, v, log_decay=Z.pop("log_decay", None), documents=Z.get("documents"))
        o, Z = self.gate(o.flatten(-2), source=X, **Z)
        return self.out(o), Z


class MultiQueryAttention(Unit):
    """Softmax attention whose heads share one key and one value (1911.02150); quadratic in length."""

    KIND = "mixer"
    CHILDREN = {"position": "position", "gate": "gate"}

    def setup(self, position: Recipe, gate: Recipe) -> None:
        self.query = self.linear(self.dim, self.dim)
        self.key_value = self.linear(self.dim, 2 * self.head_dim)
        self.position = self.build(position, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        k, v = self.key_value(X).chunk(2, dim=-1)
        qk, Z = self.position(torch.cat((self.query(X), k.repeat(1, 1, self.heads))), **Z)
        q, k = self.by_head(qk).chunk(2)
        v = v.unsqueeze(2).expand(-1, -1, self.heads, -1)
        o = causal_attention(q, k, v, log_decay=Z.pop("log_decay", None), documents=Z.get("documents"))
        o, Z = self.gate(o.flatten(-2), source=X, **Z)
        return self.out(o), Z


class SlidingWindowAttention(Unit):
    """Softmax attention to the latest `window` positions, computed block by block (2004.05150)."""

    KIND = "mixer"
    CHILDREN = {"position": "position", "gate": "gate"}
    ARGUMENTS = {"window": (32, [8, 16, 32, 64])}

    def setup(self, position: Recipe, gate: Recipe, window: int) -> None:
        self.window = window
        self.qkv = self.linear(self.dim, 3 * self.dim)
        self.position = self.build(position, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        length = X.shape[1]
        window = min(self.window, length)
        q, k, v = self.qkv(X).chunk(3, dim=-1)
        qk, Z = self.position(torch.cat((q, k)), **Z)
        filled = F.pad(torch.cat((*qk.chunk(2), v.to(qk.dtype)), dim=-1), (0, 0, 0, -length % window))
        # [batch, blocks, heads, window, head_dim]
        filled = torch.unflatten(filled, 1, (-1, window))
        q, k, v = (self.by_head(x).transpose(2, 3) for x in filled.chunk(3, dim=-1))
        k, v = (torch.cat((F.pad(x, (0, 0, 0, 0, 0, 0, 1, -1)), x), dim=-2) for x in (k, v))
        mine = torch.arange(window, device=X.device)
        distance = mine[:, None] + window - torch.arange(2 * window, device=X.device)
        hidden = ((distance < 0) | (distance >= window)).repeat(q.shape[1], 1, 1)
        hidden[0, :, :window] = True  # the first block has none before it
        documents = Z.get("documents")
        if documents is not None:
            own = torch.unflatten(F.pad(documents, (0, -length % window)), 1, (-1, window))
            seen = torch.cat((own.roll(1, dims=1), own), dim=-1)
            hidden = hidden | (own.unsqueeze(-1) != seen.unsqueeze(-2))
        log_decay = Z.pop("log_decay", torch.zeros(1, device=X.device)).to(q.dtype)
        bias = (distance * log_decay[:, None, None]).masked_fill(hidden.unsqueeze(-3), -math.inf)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(2, 3).flatten(1, 2)
        o, Z = self.gate(o[:, :length].flatten(-2), source=X, **Z)
        return self.out(o), Z


class DifferentialAttention(Unit):
    """The difference of two softmax attentions cancels what both attend to (2410.05258); quadratic in length."""

    KIND = "mixer"
    CHILDREN = {"position": "position", "norm": "norm"}

    def setup(self, position: Recipe, norm: Recipe) -> None:
        self.qk = self.linear(self.dim, 4 * self.dim)
        self.value = self.linear(self.dim, self.dim)
        self.position = self.build(position, 2 * self.dim, 2 * self.heads)
        self.subtracted = self.weight(self.heads, mean=0.8 - 0.6 * math.exp(-0.3 * self.layer_idx))
        self.norm = self.build(norm, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        qk, Z = self.position(torch.cat(self.qk(X).chunk(2, dim=-1)), **Z)
        q, k = qk.unflatten(-1, (2 * self.heads, -1)).chunk(2)
        v = self.by_head(self.value(X)).repeat(1, 1, 2, 1)
        o = causal_attention(q, k, v, log_decay=Z.pop("log_decay", None), documents=Z.get("documents"))
        kept, removed = o.chunk(2, dim=2)
        o = kept - self.subtracted[:, None].to(o.dtype) * removed
        o, Z = self.norm(o.flatten(-2), **Z)
        return self.out(o), Z


class ForgettingAttention(Unit):
    """Softmax attention with a forget gate per head that fades what lies before it (2503.02130); quadratic."""

    KIND = "mixer"
    CHILDREN = {"position": "position", "qk_norm": "norm", "gate": "gate"}

    def setup(self, position: Recipe, qk_norm: Recipe, gate: Recipe) -> None:
        self.qkv = self.linear(self.dim, 3 * self.dim)
        self.forget = self.linear(self.dim, self.heads)
        self.forget_bias = self.spread(1.0, 6.0, self.heads)
        self.qk_norm = self.build(qk_norm, self.dim, self.heads)
        self.position = self.build(position, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v = self.qkv(X).chunk(3, dim=-1)
        qk, Z = self.qk_norm(torch.cat((q, k)), **Z)
        qk, Z = self.position(qk, **Z)
        q, k = self.by_head(qk).transpose(1, 2).chunk(2)
        kept = F.logsigmoid(self.forget(X) + self.forget_bias)
        kept = (kept + Z.pop("log_decay", torch.zeros_like(self.forget_bias))).cumsum(1).transpose(1, 2)
        steps = torch.arange(X.shape[1], device=X.device)
        hidden, documents = steps[:, None] < steps, Z.get("documents")
        if documents is not None:
            hidden = hidden | (documents[:, :, None] != documents[:, None]).unsqueeze(1)
        bias = (kept.unsqueeze(-1) - kept.unsqueeze(-2)).masked_fill(hidden, -math.inf).to(q.dtype)
        o = F.scaled_dot_product_attention(q, k, self.by_head(v).transpose(1, 2).to(q.dtype), attn_mask=bias)
        o, Z = self.gate(o.transpose(1, 2).flatten(-2), source=X, **Z)
        return self.out(o), Z
