"""Associative memories need as many multiplications as their state has entries, whereas
a long convolution mixes all positions with one filter per channel. We replace the
delta-rule memory by a gated long convolution. Keys and values are multiplied
elementwise, convolved with a causal filter as long as the sequence, and multiplied
by the queries. The filter of each channel is a sum of four learned damped
exponentials, so it has few parameters and extends to any length. A learned skip term
passes the product directly. The transform is evaluated by fast Fourier transforms."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.modes = 4
        self.in_proj = nn.Linear(hidden_size, 3 * hidden_size)
        self.log_rate = nn.Parameter(torch.linspace(-5.0, 0.0, self.modes).repeat(hidden_size, 1))
        self.weight = nn.Parameter(torch.randn(hidden_size, self.modes) * self.modes**-0.5)
        self.skip = nn.Parameter(torch.ones(hidden_size))
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def filter(self, length):
        steps = torch.arange(length, device=self.weight.device)
        modes = torch.exp(-self.log_rate.exp().unsqueeze(-1) * steps)
        return (self.weight.unsqueeze(-1) * modes).sum(1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        length = hidden_states.shape[1]
        q, k, v = self.in_proj(hidden_states).chunk(3, dim=-1)
        u = (k * v).transpose(1, 2)
        spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(self.filter(length), n=2 * length)
        y = torch.fft.irfft(spectrum, n=2 * length)[..., :length] + self.skip.unsqueeze(-1) * u
        o = q * y.transpose(1, 2)
        return self.o_proj(o), None, past_key_values
