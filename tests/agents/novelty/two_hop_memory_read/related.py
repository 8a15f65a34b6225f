"""One read of an associative memory answers one-step questions only; chains such as the capital of
the country of a person need a second lookup. We give each head two memories with separate keys
and values and chain them: the first read, normalised, is itself the query of the second memory,
whose keys live in the value space of the first. No learned map or sum with the original query is
needed, and relations of different type are stored apart, so a hop changes the relation. The
output is the second read plus a learned multiple of the first. The states are additive with a
constant decay per head.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.first_weight = nn.Parameter(torch.full((num_heads, 1), 0.5))
        self.decay = nn.Parameter(torch.full((2, num_heads, 1, 1), 4.0))
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
        q = F.normalize(self.q_proj(hidden_states).view(b, t, self.num_heads, -1), dim=-1)
        k = F.normalize(self.k_proj(hidden_states).view(b, t, 2, self.num_heads, -1), dim=-1)
        v = self.v_proj(hidden_states).view(b, t, 2, self.num_heads, -1)
        keep = torch.sigmoid(self.decay)
        state = v.new_zeros(b, 2, self.num_heads, self.head_dim, self.head_dim)
        outputs = []
        for i in range(t):
            state = keep * state + k[:, i].unsqueeze(-1) * v[:, i].unsqueeze(-2)
            first = torch.einsum("bhk,bhkv->bhv", q[:, i], state[:, 0])
            query = first / (first.norm(dim=-1, keepdim=True) + 1e-3)
            second = torch.einsum("bhk,bhkv->bhv", query, state[:, 1])
            outputs.append(second + self.first_weight * first)
        return self.o_proj(torch.stack(outputs, dim=1).reshape(b, t, d)), None, past_key_values
