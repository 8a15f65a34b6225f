"""In a decaying memory the current token is written with the same weight as any other,
though it deserves special treatment because the query is its own. We read the memory
before the write and add the current token's value separately, weighted by the match
of query and key under a learned vector for each head, the bonus. The model can thus
learn to attend to itself strongly, not at all or with negative weight, without
changing what later tokens find in the memory. Decay is a learned constant per key
channel, the write is additive, and the delta rule is not used.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.decay = nn.Parameter(torch.linspace(-4.0, 0.0, hidden_size).view(num_heads, self.head_dim))
        self.bonus = nn.Parameter(torch.full((num_heads, self.head_dim), 0.5))
        self.norm = nn.LayerNorm(self.head_dim)
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
        q, k, v = (p(hidden_states).view(b, t, self.num_heads, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        keep = torch.exp(-torch.exp(self.decay)).unsqueeze(-1)
        state = q.new_zeros(b, self.num_heads, self.head_dim, self.head_dim)
        outputs = []
        for i in range(t):
            current = k[:, i].unsqueeze(-1) * v[:, i].unsqueeze(-2)
            outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, i], state + self.bonus.unsqueeze(-1) * current))
            state = keep * state + current
        o = self.norm(torch.stack(outputs, dim=1) * self.head_dim**-0.5)
        return self.o_proj(o.reshape(b, t, d)), None, past_key_values
