"""In a decaying memory the current token is written with the same weight as any other, though it
deserves special treatment because the query is its own. Instead of a bonus on the query-key
match, we give the current token a direct value path: the memory is read before the write, and
the token's own value is added to the read, weighted by a learned vector for each channel and
independent of query and key. The value residual guarantees an undistorted copy of the token at
the output, and leaves the memory to context alone. Decay is a learned constant per key channel,
the write is additive, and the delta rule is not used.
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
        self.residual = nn.Parameter(torch.full((num_heads, self.head_dim), 0.5))
        self.norm = nn.LayerNorm(self.head_dim)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
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
            outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, i], state))
            state = keep * state + k[:, i].unsqueeze(-1) * v[:, i].unsqueeze(-2)
        o = self.norm(torch.stack(outputs, dim=1) * self.head_dim**-0.5) + self.residual * v
        return self.o_proj(o.reshape(b, t, d)), None, past_key_values
