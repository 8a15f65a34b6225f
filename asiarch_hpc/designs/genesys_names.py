"""Names of other packages that published Genesys units import, in plain PyTorch.

Composed designs contain what they use of this as text, so this file imports torch alone and each definition stands
for itself. The names differ from the packages' own: units are often called RMSNorm.
"""

from typing import Any

import torch
from torch import Tensor, nn


class PlainRMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in fp32 (torchtune's RMSNorm)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return normed.to(x.dtype) * self.scale


class InterleavedRotary(nn.Module):
    """Rotary positions of pairs of neighbouring channels (torchtune's RotaryPositionalEmbeddings).

    `forward(x [batch, length, heads, dim], input_pos)` turns x; `input_pos` [batch, length] are positions where they
    do not count from 0.
    """

    def __init__(self, dim: int, max_seq_len: int = 4096, base: float = 10_000, **kwargs: Any) -> None:
        super().__init__()
        self.dim, self.max_seq_len, self.base = dim, max_seq_len, base

    def forward(self, x: Tensor, *, input_pos: Tensor | None = None) -> Tensor:
        steps = torch.arange(x.shape[1], device=x.device).unsqueeze(0) if input_pos is None else input_pos
        rates = self.base ** (-torch.arange(0, self.dim, 2, device=x.device, dtype=torch.float32) / self.dim)
        angles = (steps.float().unsqueeze(-1) * rates).unsqueeze(2)
        even, odd = torch.unflatten(x.float(), -1, (-1, 2)).unbind(-1)
        turned = (even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin())
        return torch.stack(turned, -1).flatten(-2).to(x.dtype)


ACTIVATIONS: dict[str, nn.Module] = {
    "gelu": nn.GELU(),
    "gelu_new": nn.GELU(approximate="tanh"),
    "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
    "leaky_relu": nn.LeakyReLU(),
    "linear": nn.Identity(),
    "mish": nn.Mish(),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "swish": nn.SiLU(),
    "tanh": nn.Tanh(),
}
