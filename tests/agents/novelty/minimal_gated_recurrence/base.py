"""We ask whether a vector state suffices when the gates are good. The matrix memory of DeltaNet is
replaced by a gated recurrence over channels: a candidate and an update gate are computed from
the current token alone, and the hidden state interpolates between its old value and the
candidate. Since neither depends on the previous state, the recurrence is linear in it and can be
evaluated by a scan. The candidate passes through a positive activation that is linear above
zero. A gated linear unit on the output adds the expressiveness lost by dropping the key-value
state.
"""

import torch
import torch.nn.functional as F
from torch import nn


def positive(x):
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.candidate = nn.Linear(hidden_size, hidden_size, bias=False)
        self.update = nn.Linear(hidden_size, hidden_size)
        self.gate = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)
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
        candidate = positive(self.candidate(hidden_states))
        update = torch.sigmoid(self.update(hidden_states))
        state = torch.zeros_like(candidate[:, 0])
        states = []
        for t in range(hidden_states.shape[1]):
            state = (1 - update[:, t]) * state + update[:, t] * candidate[:, t]
            states.append(state)
        o = self.norm(torch.stack(states, dim=1)) * F.silu(self.gate(hidden_states))
        return self.o_proj(o), None, past_key_values
