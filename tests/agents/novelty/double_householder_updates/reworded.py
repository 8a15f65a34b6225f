"""Tracking who holds what after a series of swaps needs more than one elementary edit at a time. We let every
word perform three edits in a row on the associative matrix of each head, with separately projected
addresses, contents and strengths, before anything is read. Chaining elementary reflections yields general
rotations, a larger family of transitions that includes swaps. Strengths beyond one are permitted since
otherwise an edit can only shrink a direction and never flip it. Apart from the repetition the layer is the
usual one with unit addresses."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.h, self.edits = num_heads, 3
        self.ask = nn.Linear(hidden_size, hidden_size, bias=False)
        self.address = nn.Linear(hidden_size, self.edits * hidden_size, bias=False)
        self.content = nn.Linear(hidden_size, self.edits * hidden_size, bias=False)
        self.strength = nn.Linear(hidden_size, self.edits * num_heads)
        self.scale = nn.RMSNorm(hidden_size // num_heads, eps=1e-5)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        ask = F.normalize(self.ask(hidden_states).unflatten(-1, (self.h, -1)), dim=-1)
        address = F.normalize(self.address(hidden_states).unflatten(-1, (self.edits, self.h, -1)), dim=-1)
        content = self.content(hidden_states).unflatten(-1, (self.edits, self.h, -1))
        strength = 2 * self.strength(hidden_states).unflatten(-1, (self.edits, self.h)).sigmoid()
        matrix = torch.zeros_like(ask[:, 0].unsqueeze(-1) * ask[:, 0].unsqueeze(-2))
        found = []
        for t in range(ask.shape[1]):
            for e in range(self.edits):
                a, c, s = address[:, t, e], content[:, t, e], strength[:, t, e, :, None, None]
                error = c.unsqueeze(-2) - a.unsqueeze(-2) @ matrix
                matrix = matrix + s * (a.unsqueeze(-1) @ error)
            found.append((ask[:, t].unsqueeze(-2) @ matrix).squeeze(-2))
        return self.out(self.scale(torch.stack(found, dim=1)).flatten(2)), None, past_key_values
