"""Heads of a memory layer work in isolation until the output projection, by which time
all matching has been decided. We let heads talk: a small learned matrix mixes the
attention logits across heads before the softmax, and a second one mixes the
attention weights after it. A head can then combine the evidence of several key
spaces, or copy the pattern of another head with a different sign, at a cost of two
matrices of heads by heads. Both start at the identity. The layer uses causal softmax
attention rather than DeltaNet's state, because mixing needs explicit weights."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.mix_logits = nn.Parameter(torch.eye(num_heads))
        self.mix_weights = nn.Parameter(torch.eye(num_heads))
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        b, t, d = hidden_states.shape
        q, k, v = (
            p(hidden_states).view(b, t, self.num_heads, -1).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        logits = torch.einsum("gh,bhts->bgts", self.mix_logits, logits)
        future = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1)
        weights = logits.masked_fill(future, float("-inf")).softmax(-1)
        weights = torch.einsum("gh,bhts->bgts", self.mix_weights, weights)
        o = weights @ v
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
