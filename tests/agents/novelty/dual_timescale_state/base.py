"""One decay per head forces every head to choose between remembering far and reacting fast. We keep
two states for each head, both fed by the same keys and values: a fast one with a strong fixed
decay and a slow one with a weak fixed decay, whose rates are learned per head. Each token reads
both states with the same query and blends the two reads with a sigmoid gate predicted from the
token, so the horizon is chosen at read time and no information has to be committed to a
timescale when it is written. The delta correction of DeltaNet is dropped."""

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
        self.gate = nn.Linear(hidden_size, num_heads)
        self.fast = nn.Parameter(torch.full((num_heads,), 0.5))
        self.slow = nn.Parameter(torch.full((num_heads,), 4.0))

    def read(self, q, k, v, log_decay):
        steps = torch.arange(q.shape[2], device=q.device)
        distance = steps[:, None] - steps[None, :]
        weight = (distance * log_decay[:, None, None]).exp() * (distance >= 0)
        return (q @ k.transpose(-1, -2) * weight) @ v

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
        heads = [p(hidden_states).view(b, t, self.num_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj)]
        q, k = (F.normalize(x, dim=-1) for x in heads)
        v = self.v_proj(hidden_states).view(b, t, self.num_heads, -1).transpose(1, 2)
        fast = self.read(q, k, v, F.logsigmoid(self.fast))
        slow = self.read(q, k, v, F.logsigmoid(self.slow))
        gate = torch.sigmoid(self.gate(hidden_states)).transpose(1, 2).unsqueeze(-1)
        o = gate * fast + (1 - gate) * slow
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
