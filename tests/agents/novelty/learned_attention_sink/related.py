"""Softmax must give its full mass to some token even if nothing is relevant, and trained models waste the
first tokens as a dumping ground. We give every head a sink with content: four learned key and value
vectors that are prepended to the sequence and compete with the tokens in the normalisation of causal
attention. Their logits depend on the query, so each query may choose which sink to use, and a sink returns
a learned default answer in place of nothing, a prior over values that is independent of the context. The
gates and corrections of DeltaNet become unnecessary for suppressing poor reads."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads, self.sinks = num_heads, 4
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.sink_keys = nn.Parameter(torch.randn(num_heads, self.sinks, hidden_size // num_heads) * 0.5)
        self.sink_values = nn.Parameter(torch.randn(num_heads, self.sinks, hidden_size // num_heads) * 0.02)
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
        k = torch.cat([self.sink_keys.expand(b, -1, -1, -1), k], dim=2)
        v = torch.cat([self.sink_values.expand(b, -1, -1, -1), v], dim=2)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        future = torch.ones(t, t + self.sinks, dtype=torch.bool, device=q.device).triu(1 + self.sinks)
        o = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
