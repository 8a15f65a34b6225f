"""Memories: small stores beside the main mixer; they also fit where a feed-forward stands."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Unit
from kernels.delta_rule import delta_rule
from kernels.linear_attention import linear_attention
from kernels.linear_scan import linear_scan


class PersistentMemory(Unit):
    """Learned key-value pairs per head that every token attends to (1907.01470)."""

    KIND = "memory"
    ARGUMENTS = {"slots": (64, [16, 32, 64, 128])}

    def setup(self, slots: int) -> None:
        self.query = self.linear(self.dim, self.dim)
        self.keys = self.weight(1, self.heads, slots, self.head_dim, std=1.0)
        self.values = self.weight(1, self.heads, slots, self.head_dim, std=1.0)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q = self.by_head(self.query(X)).transpose(1, 2)
        keys, values = (x.to(q.dtype).expand(X.shape[0], -1, -1, -1) for x in (self.keys, self.values))
        o = F.scaled_dot_product_attention(q, keys, values)
        return self.out(o.transpose(1, 2).flatten(-2)), Z


class SlotMemory(Unit):
    """A fixed number of slots that tokens write to and read from by softmax addresses; slots fade (2409.07146)."""

    KIND = "memory"
    ARGUMENTS = {"slots": (16, [8, 16, 32])}

    def setup(self, slots: int) -> None:
        self.slots = slots
        self.qkv = self.linear(self.dim, 3 * self.dim)
        self.address = self.linear(self.dim, self.heads * slots)
        self.fade = self.linear(self.dim, self.heads)
        self.fade_bias = self.spread(2.0, 5.0, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v = (self.by_head(x) for x in self.qkv(X).chunk(3, dim=-1))
        write = torch.softmax(self.by_head(self.address(X)), dim=-1)
        log_decay = F.logsigmoid(self.fade(X) + self.fade_bias)
        documents = Z.get("documents")
        # What each slot holds for keys is compared with the query; the slots' values are then read by that.
        match, _ = linear_attention(q, k, write, log_decay, documents=documents)
        read = torch.softmax(match, dim=-1)
        o, _ = linear_attention(read, write, v, log_decay, scale=1.0, documents=documents)
        return self.out(F.rms_norm(o, (self.head_dim,), eps=1e-5).flatten(-2)), Z


class TimescaleMemory(Unit):
    """Narrow averages of the past over several fixed time spans; each token chooses which span to read."""

    KIND = "memory"
    ARGUMENTS = {"spans": (4, [2, 4, 6]), "share": (0.5, [0.25, 0.5])}

    def setup(self, spans: int, share: float) -> None:
        self.spans = spans
        self.narrow = max(2, round(self.dim * share))
        self.write = self.linear(self.dim, self.narrow)
        self.choose = self.linear(self.dim, spans)
        self.read = self.linear(self.narrow, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        span = torch.arange(self.spans, device=X.device, dtype=torch.promote_types(X.dtype, torch.float32))
        kept = (1.0 - torch.exp2(-1.0 - 2.0 * span)).repeat_interleave(self.narrow)
        put_in = self.write(X).repeat(1, 1, self.spans) * torch.sqrt(1.0 - kept * kept).to(X.dtype)
        averages = linear_scan(put_in, torch.log(kept), documents=Z.get("documents"))
        averages = torch.unflatten(averages, -1, (self.spans, -1))
        weights = torch.softmax(self.choose(X), dim=-1).unsqueeze(-1)
        return self.read(F.silu((averages * weights).sum(-2))), Z


class DeltaMemory(Unit):
    """A delta-rule store with narrow keys, so that it costs little beside a mixer (2102.11174)."""

    KIND = "memory"
    ARGUMENTS = {"key": (8, [4, 8, 16])}

    def setup(self, key: int) -> None:
        self.query_key = self.linear(self.dim, 2 * self.heads * key)
        self.value = self.linear(self.dim, self.dim)
        self.strength = self.linear(self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q, k = self.by_head(self.query_key(X)).chunk(2, dim=-1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        v, beta = self.by_head(self.value(X)), torch.sigmoid(self.strength(X))
        o, _ = delta_rule(q, k, v, beta, scale=1.0, documents=Z.get("documents"))
        return self.out(o.flatten(-2)), Z
