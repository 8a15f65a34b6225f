"""Softmax must give its full mass to some token even if nothing is relevant, and
trained models waste the first tokens as a dumping ground. We give every head a sink:
a learned logit that takes part in the normalisation of causal attention and carries
no value. A head that finds no match can leave its mass in the sink and output nearly
nothing, which is what an empty associative memory does. The logit is shared by all
queries of a head. The gates and corrections of DeltaNet become unnecessary for
suppressing poor reads.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.sink = nn.Parameter(torch.zeros(num_heads))
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
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        future = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
        sink = self.sink.view(1, -1, 1, 1).expand(b, -1, t, 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
        o = weights @ v
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
