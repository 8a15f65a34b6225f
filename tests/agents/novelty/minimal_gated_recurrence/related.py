"""We ask whether a vector state suffices when the gates are good. The matrix memory of DeltaNet is
replaced by a gated recurrence over channels in which the update gate sees the state: a candidate
is computed from the current token alone, and the gate from the token plus a learned diagonal
weight times the previous hidden state, so a channel that already holds evidence can protect
itself. The recurrence is no longer linear in its state, a scan is impossible, and the loop is
evaluated step by step. The candidate passes through a positive activation, and a gated linear
unit is put on the output."""

import torch
import torch.nn.functional as F
from torch import nn


def positive(x):
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.candidate = nn.Linear(hidden_size, hidden_size, bias=False)
        self.update = nn.Linear(hidden_size, hidden_size)
        self.feedback = nn.Parameter(torch.full((hidden_size,), -0.5))
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
        logits = self.update(hidden_states)
        state = torch.zeros_like(candidate[:, 0])
        states = []
        for t in range(hidden_states.shape[1]):
            update = torch.sigmoid(logits[:, t] + self.feedback * state)
            state = (1 - update) * state + update * candidate[:, t]
            states.append(state)
        o = self.norm(torch.stack(states, dim=1)) * F.silu(self.gate(hidden_states))
        return self.o_proj(o), None, past_key_values
