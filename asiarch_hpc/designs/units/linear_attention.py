"""Linear attention: a matrix-valued state that adds key-value products and may decay."""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Recipe, Unit
from kernels.linear_attention import linear_attention


class LinearAttention(Unit):
    """Attention with a feature map in place of the softmax, normalised by the sum of its weights (2006.16236)."""

    KIND = "mixer"
    CHILDREN = {"feature_map": "feature_map", "position": "position", "norm": "norm", "gate": "gate"}

    def setup(self, feature_map: Recipe, position: Recipe, norm: Recipe, gate: Recipe) -> None:
        self.qkv = self.linear(self.dim, 3 * self.dim)
        self.feature_map = self.build(feature_map, self.dim, self.heads)
        self.position = self.build(position, self.dim, self.heads)
        self.norm = self.build(norm, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v = self.qkv(X).chunk(3, dim=-1)
        qk, Z = self.feature_map(torch.cat((q, k)), **Z)
        qk, Z = self.position(qk, **Z)
        q, k = self.by_head(qk).chunk(2)
        log_decay = Z.pop("log_decay", None)
        if log_decay is not None:
            log_decay = log_decay.expand(*q.shape[:3])
        # A channel of ones beside the values sums the weights.
        v = F.pad(self.by_head(v), (0, 1), value=1.0)
        o, _ = linear_attention(q, k, v, log_decay, scale=1.0, documents=Z.get("documents"))
        o = o[..., :-1] / o[..., -1:].abs().clamp(min=1.0)
        o, Z = self.norm(o.flatten(-2), **Z)
        o, Z = self.gate(o, source=X, **Z)
        return self.out(o), Z


class Retention(Unit):
    """RetNet (2307.08621): each head's state decays at a fixed rate of its own."""

    KIND = "mixer"
    CHILDREN = {"position": "position", "norm": "norm", "gate": "gate"}
    ARGUMENTS = {"expand_v": (2.0, [1.0, 2.0])}

    def setup(self, position: Recipe, norm: Recipe, gate: Recipe, expand_v: float) -> None:
        self.value_dim = self.heads * round(self.head_dim * expand_v)
        self.qkv = self.linear(self.dim, 2 * self.dim + self.value_dim)
        self.position = self.build(position, self.dim, self.heads)
        self.norm = self.build(norm, self.value_dim, self.heads)
        self.gate = self.build(gate, self.value_dim, self.heads, source_dim=self.dim)
        self.out = self.linear(self.value_dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v = self.qkv(X).split((self.dim, self.dim, self.value_dim), dim=-1)
        qk, Z = self.position(torch.cat((q, k)), **Z)
        q, k = self.by_head(qk).chunk(2)
        head = torch.arange(self.heads, device=X.device, dtype=torch.promote_types(X.dtype, torch.float32))
        log_decay = torch.log1p(-torch.exp2(-5.0 - head)) + Z.pop("log_decay", torch.zeros_like(head))
        o, _ = linear_attention(q, k, self.by_head(v), log_decay.expand(*q.shape[:3]), documents=Z.get("documents"))
        o, Z = self.norm(o.flatten(-2), **Z)
        o, Z = self.gate(o, source=X, **Z)
        return self.out(o), Z


class GatedLinearAttention(Unit):
    """GLA (2312.06635): every key channel of the state decays as the token says, through a low-rank gate."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution", "norm": "norm", "gate": "gate"}
    ARGUMENTS = {"expand_k": (0.5, [0.5, 1.0]), "rank": (16, [8, 16, 32]), "slowness": (16.0, [4.0, 16.0])}

    def setup(
        self, convolution: Recipe, norm: Recipe, gate: Recipe, expand_k: float, rank: int, slowness: float
    ) -> None:
        self.slowness = slowness
        self.key_dim = self.heads * round(self.head_dim * expand_k)
        width = 2 * self.key_dim + self.dim
        self.qkv = self.linear(self.dim, width)
        self.convolution = self.build(convolution, width, self.heads)
        self.decay_down = self.linear(self.dim, rank)
        self.decay_up = self.linear(rank, self.key_dim)
        self.decay_bias = self.weight(self.key_dim)
        self.norm = self.build(norm, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        qkv, Z = self.convolution(self.qkv(X), **Z)
        q, k, v = (self.by_head(x) for x in qkv.split((self.key_dim, self.key_dim, self.dim), dim=-1))
        decay = self.decay_up(self.decay_down(X)) + self.decay_bias
        log_decay = self.by_head(F.logsigmoid(decay) / self.slowness)
        o, _ = linear_attention(q, k, v, log_decay, documents=Z.get("documents"))
        o, Z = self.norm(o.flatten(-2), **Z)
        o, Z = self.gate(o, source=X, **Z)
        return self.out(o), Z


class HGRN2(Unit):
    """HGRN2 (2404.07904): what a channel forgets is what its key writes; forgetting has a learned floor per layer."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution", "norm": "norm", "gate": "gate"}

    def setup(self, convolution: Recipe, norm: Recipe, gate: Recipe) -> None:
        self.qfv = self.linear(self.dim, 3 * self.dim)
        self.convolution = self.build(convolution, 3 * self.dim, 3 * self.heads)
        self.floor = self.weight(self.dim, mean=float(self.layer_idx), std=0.5)
        self.norm = self.build(norm, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        qfv, Z = self.convolution(self.qfv(X), **Z)
        q, f, v = qfv.chunk(3, dim=-1)
        written = torch.sigmoid(-self.floor) * torch.sigmoid(-f)
        operands = (self.by_head(x) for x in (F.silu(q), written, v, torch.log1p(-written)))
        o, _ = linear_attention(*operands, documents=Z.get("documents"))
        o, Z = self.norm(o.flatten(-2), **Z)
        o, Z = self.gate(o, source=X, **Z)
        return self.out(o), Z


class MatrixLSTM(Unit):
    """The matrix memory of xLSTM (2405.04517) with sigmoid input and forget gates and its normaliser."""

    KIND = "mixer"
    CHILDREN = {"convolution": "convolution", "norm": "norm", "gate": "gate"}

    def setup(self, convolution: Recipe, norm: Recipe, gate: Recipe) -> None:
        self.convolution = self.build(convolution, self.dim, self.heads)
        self.qk = self.linear(self.dim, 2 * self.dim)
        self.value = self.linear(self.dim, self.dim)
        self.gates = self.linear(self.dim, 2 * self.heads)
        self.input_bias = self.weight(self.heads)
        self.forget_bias = self.spread(3.0, 6.0, self.heads)
        self.norm = self.build(norm, self.dim, self.heads)
        self.gate = self.build(gate, self.dim, self.heads)
        self.out = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        local, Z = self.convolution(X, **Z)
        q, k = (self.by_head(x) for x in self.qk(local).chunk(2, dim=-1))
        let_in, forget = self.gates(X).chunk(2, dim=-1)
        k = k * torch.sigmoid(let_in + self.input_bias).unsqueeze(-1)
        v = F.pad(self.by_head(self.value(X)), (0, 1), value=1.0)
        o, _ = linear_attention(q, k, v, F.logsigmoid(forget + self.forget_bias), documents=Z.get("documents"))
        o = o[..., :-1] / o[..., -1:].abs().clamp(min=1.0)
        o, Z = self.norm(o.flatten(-2), **Z)
        o, Z = self.gate(o, source=X, **Z)
        return self.out(o), Z
