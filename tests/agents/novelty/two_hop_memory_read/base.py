"""One read of an associative memory answers one-step questions only; chains such as the
capital of the country of a person need a second lookup. We read twice from the same
state in one layer: the first read, mapped by a learned matrix for each head, is
added to the query, the sum is normalised, and the memory is read again with it. The
output is the second read plus a learned multiple of the first. The state is an
additive memory with a constant decay per head, and writing is not affected by the
number of hops."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.hop = nn.Parameter(torch.randn(num_heads, self.head_dim, self.head_dim) * self.head_dim**-0.5)
        self.first_weight = nn.Parameter(torch.full((num_heads, 1), 0.5))
        self.decay = nn.Parameter(torch.full((num_heads,), 4.0))
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
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        keep = torch.sigmoid(self.decay).view(-1, 1, 1)
        state = v.new_zeros(b, self.num_heads, self.head_dim, self.head_dim)
        outputs = []
        for i in range(t):
            state = keep * state + k[:, i].unsqueeze(-1) * v[:, i].unsqueeze(-2)
            first = torch.einsum("bhk,bhkv->bhv", q[:, i], state)
            query = q[:, i] + torch.einsum("bhv,hvk->bhk", first, self.hop)
            query = query / (query.norm(dim=-1, keepdim=True) + 1e-3)
            second = torch.einsum("bhk,bhkv->bhv", query, state)
            outputs.append(second + self.first_weight * first)
        return self.o_proj(torch.stack(outputs, dim=1).reshape(b, t, d)), None, past_key_values
