"""One decay per head forces every head to choose between remembering far and reacting fast. We keep two states for
each head, a fast one with a strong decay and a slow one with a weak decay, whose rates are learned per head.
Unlike designs that write both states with the same keys and values, only the fast state sees the tokens: the slow
state is fed by what the fast state forgets at every step, so content is consolidated in a cascade and nothing is
stored twice. A token reads the sum of both states with one query. The delta correction of DeltaNet is dropped.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.transfer = nn.Linear(hidden_size, num_heads)
        self.fast = nn.Parameter(torch.full((num_heads,), 0.5))
        self.slow = nn.Parameter(torch.full((num_heads,), 4.0))

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
        transfer = torch.sigmoid(self.transfer(hidden_states))[..., None, None]
        keep_fast = torch.sigmoid(self.fast)[:, None, None]
        keep_slow = torch.sigmoid(self.slow)[:, None, None]
        fast = v.new_zeros(b, self.num_heads, self.head_dim, self.head_dim)
        slow = torch.zeros_like(fast)
        outputs = []
        for i in range(t):
            lost = (1 - keep_fast) * fast
            slow = keep_slow * slow + transfer[:, i] * lost
            fast = fast - lost + k[:, i].unsqueeze(-1) * v[:, i].unsqueeze(-2)
            outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, i], fast + slow))
        return self.o_proj(torch.stack(outputs, 1).reshape(b, t, d)), None, past_key_values
