"""The time mixing of RWKV."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
from torch import Tensor

from asiarch_hpc.designs.units.base import Recipe, Unit
from kernels.linear_attention import linear_attention
from kernels.linear_scan import linear_scan
from kernels.packing import previous


class RWKV6TimeMix(Unit):
    """RWKV-6 (2404.05892): token shifts and decays depend on the token; the current token has a bonus."""

    KIND = "mixer"
    CHILDREN = {"norm": "norm", "gate": "gate"}
    ARGUMENTS = {"shift_rank": (16, [8, 16, 32]), "decay_rank": (16, [8, 16, 32, 64])}

    def setup(self, norm: Recipe, gate: Recipe, shift_rank: int, decay_rank: int) -> None:
        self.first_shift = self.spread(0.1, 0.9, self.dim)
        self.shift_down = self.linear(self.dim, 5 * shift_rank)
        self.shift_up = self.weight(5, shift_rank, self.dim, std=0.01)
        self.shift = self.weight(5, self.dim, mean=0.5)
        self.receptance = self.linear(self.dim, self.dim)
        self.key = self.linear(self.dim, self.dim)
        self.value = self.linear(self.dim, self.dim)
        self.decay_down = self.linear(self.dim, decay_rank)
        self.decay_up = self.weight(decay_rank, self.dim, std=0.01)
        self.decay = self.spread(-6.0, -0.5, self.dim)
        self.bonus = self.weight(self.heads, self.head_dim, mean=0.5, std=0.1)
        self.norm = self.build(norm, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        documents = Z.get("documents")
        change = previous(X, documents) - X
        low = torch.tanh(self.shift_down(torch.addcmul(X, change, self.first_shift)))
        low = torch.unflatten(low, -1, (5, -1))
        shift = torch.einsum("blsr,srd->sbld", low, self.shift_up) + self.shift[:, None, None]
        for_r, for_k, for_v, for_gate, for_decay = torch.addcmul(X, change, shift).unbind()
        decay = self.decay + torch.tanh(self.decay_down(for_decay)) @ self.decay_up
        r, k, v = self.receptance(for_r), self.key(for_k), self.value(for_v)
        operands = (self.by_head(x) for x in (r, k, v, -decay.exp()))
        o, _ = linear_attention(*operands, bonus=self.bonus, scale=1.0, documents=documents)
        o, Z = self.norm(o.flatten(-2), **Z)
        o, Z = self.gate(o, source=for_gate, **Z)
        return self.out(o), Z


class RWKV4TimeMix(Unit):
    """RWKV-4 (2305.13048): a decaying average of values weighed by bounded exponential keys, gated by the token."""

    KIND = "mixer"
    CHILDREN = {"shift": "convolution"}

    def setup(self, shift: Recipe) -> None:
        self.shift = self.build(shift, self.dim, self.heads)
        self.receptance = self.linear(self.dim, self.dim)
        self.key_value = self.linear(self.dim, 2 * self.dim)
        self.decay = self.spread(-5.0, 1.0, self.dim)
        self.bonus = self.weight(self.dim, mean=0.3, std=0.1)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        shifted, Z = self.shift(X, **Z)
        k, v = self.key_value(shifted).chunk(2, dim=-1)
        weight = torch.exp(8.0 * torch.tanh(k / 8.0))  # within [e^-8, e^8]: sums of many stay finite
        documents = Z.get("documents")
        put_in = torch.cat((weight * v, weight), dim=-1)
        sums = linear_scan(put_in, -self.decay.exp().repeat(2), documents=documents)
        past, past_weight = previous(sums, documents).chunk(2, dim=-1)
        own = weight * self.bonus.exp()
        average = (past + own * v) / (past_weight + own)
        return self.out(torch.sigmoid(self.receptance(shifted)) * average), Z
