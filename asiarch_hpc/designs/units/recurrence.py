"""Gated recurrences with a vector-valued state: h_t = a_t h_{t-1} + b_t, channel by channel."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Recipe, Unit
from kernels.linear_scan import linear_scan
from kernels.packing import places


class MovingAverageMixer(Unit):
    """Several learned exponential moving averages of every channel, mixed and gated (Mega, 2209.10655)."""

    KIND = "mixer"
    CHILDREN = {"norm": "norm", "gate": "gate"}
    ARGUMENTS = {"averages": (2, [1, 2, 4])}

    def setup(self, norm: Recipe, gate: Recipe, averages: int) -> None:
        self.averages = averages
        self.value = self.linear(self.dim, self.dim)
        self.forget = self.spread(0.0, 5.0, averages * self.dim)
        self.read = self.weight(averages, self.dim, mean=0.5, std=0.5)
        self.direct = self.weight(self.dim, mean=1.0)
        self.norm = self.build(norm, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        v = self.value(X)
        put_in = v.repeat(1, 1, self.averages) * torch.sigmoid(-self.forget)
        states = linear_scan(put_in, F.logsigmoid(self.forget), documents=Z.get("documents"))
        states = torch.unflatten(states, -1, (self.averages, -1))
        o = F.silu((states * self.read).sum(-2) + v * self.direct)
        o, Z = self.norm(o, **Z)
        o, Z = self.gate(o, source=X, **Z)
        return self.out(o), Z


class MinimalGRU(Unit):
    """minGRU (2410.01201): a gated recurrent unit whose gate and candidate do not see the state."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution", "gate": "gate"}
    ARGUMENTS = {"expand": (1.0, [1.0, 1.5, 2.0])}

    def setup(self, convolution: Recipe, gate: Recipe, expand: float) -> None:
        inner = self.heads * round(self.head_dim * expand)
        self.convolution = self.build(convolution, self.dim, self.heads)
        self.update_candidate = self.linear(self.dim, 2 * inner)
        self.update_bias = self.spread(0.0, -4.0, inner)
        self.gate = self.build(gate, inner, self.heads, source_dim=self.dim)
        self.out = self.linear(inner, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        local, Z = self.convolution(X, **Z)
        update, candidate = self.update_candidate(local).chunk(2, dim=-1)
        update = update + self.update_bias
        # log(1 - sigmoid(u)) is -softplus(u) without cancellation.
        h = linear_scan(torch.sigmoid(update) * candidate, -F.softplus(update), documents=Z.get("documents"))
        h, Z = self.gate(h, source=X, **Z)
        return self.out(h), Z


class GatedLinearRecurrence(Unit):
    """The recurrence of Griffin (2402.19427): learned decays slowed by a gate, inputs scaled to keep the variance."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution", "gate": "gate"}
    ARGUMENTS = {"expand": (1.0, [1.0, 1.5])}

    def setup(self, convolution: Recipe, gate: Recipe, expand: float) -> None:
        inner = self.heads * round(self.head_dim * expand)
        self.value = self.linear(self.dim, inner)
        self.convolution = self.build(convolution, inner, self.heads)
        self.gates = self.weight(self.heads, inner // self.heads, 2 * inner // self.heads, std=inner**-0.5)
        self.rate = self.spread(-6.0, -2.0, inner)
        self.gate = self.build(gate, inner, self.heads, source_dim=self.dim)
        self.out = self.linear(inner, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x, Z = self.convolution(self.value(X), **Z)
        gates = torch.sigmoid(torch.einsum("blhi,hio->blho", self.by_head(x), self.gates))
        slow, let_in = (gate.flatten(-2) for gate in gates.chunk(2, dim=-1))
        log_decay = -8.0 * F.softplus(self.rate) * slow
        kept_variance = torch.sqrt(-torch.expm1(2.0 * log_decay) + 1e-6)
        h = linear_scan(kept_variance * let_in * x, log_decay, documents=Z.get("documents"))
        h, Z = self.gate(h, source=X, **Z)
        return self.out(h), Z


class CumulativeAverage(Unit):
    """The plain mean of all values so far, gated by the token (1805.00631): the cheapest mixer with full reach."""

    KIND = "mixer"
    CHILDREN = {"norm": "norm", "gate": "gate"}

    def setup(self, norm: Recipe, gate: Recipe) -> None:
        self.value = self.linear(self.dim, self.dim)
        self.norm = self.build(norm, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        v = self.value(X)
        count = torch.arange(1, X.shape[1] + 1, device=X.device, dtype=torch.promote_types(X.dtype, torch.float32))
        documents, sums = Z.get("documents"), v.to(count.dtype)
        if documents is None:
            sums = sums.cumsum(1)
        else:
            count = 1 + places(documents).to(count.dtype)
            sums = linear_scan(sums, torch.zeros_like(sums), documents=documents)
        mean = (sums / count.unsqueeze(-1)).to(v.dtype)
        mean, Z = self.norm(mean, **Z)
        mean, Z = self.gate(mean, source=X, **Z)
        return self.out(mean), Z
