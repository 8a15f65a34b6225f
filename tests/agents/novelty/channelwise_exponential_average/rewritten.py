"""We study attention with position-only queries, obtained as the rank-one limit in which relevance is decided by the
attended token and the lag alone. Each coordinate runs an independent normalised kernel over the prefix,
parameterised by a slope over lags and a diagonal offset. We materialise the logits as a three-dimensional tensor,
which modern accelerators handle well for moderate lengths, and obtain normalisation by a log-sum-exp over sources.
A logistic valve closes the circuit. The rank-one limit has been overlooked in the rush towards ever larger
associative states with decays and delta corrections.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.streams = nn.Parameter(torch.randn(3, hidden_size, hidden_size) / hidden_size**0.5)
        self.slope = nn.Parameter(torch.linspace(-4.0, 1.0, hidden_size))
        self.offset = nn.Parameter(torch.full((hidden_size,), -0.7))
        self.out = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size**0.5)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        length = hidden_states.shape[1]
        valve, relevance, content = torch.einsum("btd,ned->nbte", hidden_states, self.streams)
        position = torch.arange(length, device=content.device)
        lag = (position[:, None] - position[None, :]).unsqueeze(-1)
        prior = -(lag - 1).clamp_min(0) * torch.exp(self.slope)
        prior = prior + (lag == 0) * (1 + self.offset)
        prior = prior.masked_fill(lag < 0, float("-inf"))
        logits = prior + relevance.unsqueeze(1)
        kernel = torch.exp(logits - torch.logsumexp(logits, dim=2, keepdim=True))
        mean = (kernel * content.unsqueeze(1)).sum(2)
        gated = mean * (0.5 + 0.5 * torch.tanh(valve / 2))
        return torch.einsum("btd,de->bte", gated, self.out), None, past_key_values
