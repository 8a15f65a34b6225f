"""An additive associative state knows what was said but not how long ago. Turning each address through an angle that
grows with its index, and each request likewise, makes their match depend upon how far apart they are, at no cost
in parameters or memory. In addition every head forgets at its own exponential pace, so distance acts both on phase
and on magnitude. We favour slow-to-fast turning speeds over a modest range since language is mostly local. Storing
is by plain summation; nothing already written is touched by later words."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.pace = nn.Parameter(torch.linspace(1.0, 5.0, num_heads))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def turn(self, x, position):
        even, odd = x[..., 0::2], x[..., 1::2]
        speed = torch.logspace(0, -3, even.shape[-1], device=x.device)
        cos, sin = torch.cos(position * speed), torch.sin(position * speed)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.h, -1)).unbind(2)
        position = torch.arange(q.shape[1], device=q.device).view(-1, 1, 1)
        q, k = self.turn(F.silu(q), position), self.turn(F.silu(k), position)
        keep = torch.sigmoid(self.pace)[:, None, None]
        state = torch.zeros_like(k[:, 0, :, :, None] * v[:, 0, :, None, :])
        out = []
        for t in range(q.shape[1]):
            state = keep * state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
            out.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
        return self.out(torch.stack(out, 1).flatten(2) * q.shape[-1] ** -0.5), None, past_key_values
