"""Feed-forwards: what happens to each position on its own, or with its nearest past.

`multiple` is the hidden width in units of dim, rounded to a multiple of 8.
"""

# ruff: noqa: RUF012 -- the declarations are read as text and never changed

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.units.base import Recipe, Unit
from kernels.packing import previous
from kernels.swiglu import swiglu


class SwiGLU(Unit):
    """A SiLU-gated hidden layer (2002.05202)."""

    KIND = "ffn"
    ARGUMENTS = {"multiple": (2.67, [1.0, 1.33, 2.0, 2.67, 4.0])}

    def setup(self, multiple: float) -> None:
        hidden = self.hidden(multiple)
        self.up = self.linear(self.dim, 2 * hidden)
        self.down = self.linear(hidden, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.down(swiglu(self.up(X))), Z


class GELUFeedForward(Unit):
    """One hidden layer with GELU, as in GPT-2."""

    KIND = "ffn"
    ARGUMENTS = {"multiple": (4.0, [2.0, 2.67, 4.0])}

    def setup(self, multiple: float) -> None:
        hidden = self.hidden(multiple)
        self.up = self.linear(self.dim, hidden)
        self.down = self.linear(hidden, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.down(F.gelu(self.up(X))), Z


class SquaredReLUFeedForward(Unit):
    """One hidden layer with the square of ReLU, which leaves most hidden channels at zero (2109.08668)."""

    KIND = "ffn"
    ARGUMENTS = {"multiple": (4.0, [2.0, 2.67, 4.0])}

    def setup(self, multiple: float) -> None:
        hidden = self.hidden(multiple)
        self.up = self.linear(self.dim, hidden)
        self.down = self.linear(hidden, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.down(F.relu(self.up(X)).square()), Z


class BilinearFeedForward(Unit):
    """The product of two projections, without any other non-linearity (2002.05202)."""

    KIND = "ffn"
    ARGUMENTS = {"multiple": (2.67, [1.33, 2.0, 2.67])}

    def setup(self, multiple: float) -> None:
        hidden = self.hidden(multiple)
        self.up = self.linear(self.dim, 2 * hidden)
        self.down = self.linear(hidden, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        left, right = self.up(X).chunk(2, dim=-1)
        return self.down(left * right), Z


class RWKVChannelMix(Unit):
    """Squared ReLU between token-shifted inputs, gated by the current token (RWKV-6, 2404.05892)."""

    KIND = "ffn"
    ARGUMENTS = {"multiple": (3.5, [2.0, 2.67, 3.5])}

    def setup(self, multiple: float) -> None:
        hidden = self.hidden(multiple)
        self.key_shift = self.spread(0.1, 0.9, self.dim)
        self.gate_shift = self.spread(0.1, 0.9, self.dim)
        self.key = self.linear(self.dim, hidden)
        self.value = self.linear(hidden, self.dim)
        self.gate = self.linear(self.dim, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        change = previous(X, Z.get("documents")) - X
        key = self.key(torch.addcmul(X, change, self.key_shift))
        gate = self.gate(torch.addcmul(X, change, self.gate_shift))
        return torch.sigmoid(gate) * self.value(F.relu(key).square()), Z


class ConvolvedFeedForward(Unit):
    """A gated hidden layer whose value passes through a causal convolution."""

    KIND = "ffn"
    CHILDREN = {"convolution": "convolution"}
    ARGUMENTS = {"multiple": (2.67, [1.33, 2.0, 2.67])}

    def setup(self, convolution: Recipe, multiple: float) -> None:
        hidden = self.hidden(multiple)
        self.up = self.linear(self.dim, 2 * hidden)
        self.convolution = self.build(convolution, hidden, 1)
        self.down = self.linear(hidden, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        gate, value = self.up(X).chunk(2, dim=-1)
        value, Z = self.convolution(value, **Z)
        return self.down(F.silu(gate) * value), Z


class SoftMixture(Unit):
    """Small experts side by side; each token weighs all of them by a softmax (dense, so nothing is dropped)."""

    KIND = "ffn"
    ARGUMENTS = {"experts": (4, [2, 4, 8]), "multiple": (2.67, [2.0, 2.67, 4.0])}

    def setup(self, experts: int, multiple: float) -> None:
        self.experts = experts
        hidden = experts * max(1, round(self.dim * multiple / experts))
        self.route = self.linear(self.dim, experts)
        self.up = self.linear(self.dim, hidden)
        self.down = self.linear(hidden, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        weights = self.experts * torch.softmax(self.route(X), dim=-1)
        hidden = torch.unflatten(F.silu(self.up(X)), -1, (self.experts, -1))
        return self.down((hidden * weights.unsqueeze(-1)).flatten(-2)), Z


class LowRankFeedForward(Unit):
    """A GELU layer whose projections in and out go through a quarter of the channels (2407.09835)."""

    KIND = "ffn"
    ARGUMENTS = {"multiple": (4.0, [2.67, 4.0])}

    def setup(self, multiple: float) -> None:
        hidden, rank = self.hidden(multiple), max(1, self.dim // 4)
        self.narrow_in = self.linear(self.dim, rank)
        self.up = self.linear(rank, hidden)
        self.down = self.linear(hidden, rank)
        self.narrow_out = self.linear(rank, self.dim)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.narrow_out(self.down(F.gelu(self.up(self.narrow_in(X))))), Z
