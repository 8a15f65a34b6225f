"""A word asking a question of the past should not find mostly itself. With fading memories that is
exactly what happens, since the youngest entry is the least faded. Our layer answers from the
state as it stood one step earlier and then adds its own contribution through a trainable,
feature-wise coefficient, so self-reference becomes a choice that has no bearing on what gets
stored. Fading speed is a trained number for each address feature and storage is plain
accumulation. Heads that ignore themselves turn into pure context heads; others act as a
position-wise nonlinear map.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.fade = nn.Parameter(torch.linspace(0.0, 4.0, hidden_size))
        self.self_weight = nn.Parameter(torch.full((hidden_size,), 1.0))
        self.norm = nn.LayerNorm(hidden_size // num_heads)
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
        n = hidden_states.shape[1]
        q, k, v = self.qkv(hidden_states).chunk(3, dim=-1)
        own = (q * self.self_weight * k).unflatten(-1, (self.h, -1)).sum(-1)
        i = torch.arange(n, device=q.device)
        age = (i[:, None] - i - 1).clamp_min(0)[..., None]
        keep = torch.sigmoid(self.fade) ** age * (i[:, None] > i)[..., None]
        scores = (q[:, :, None] * k[:, None] * keep).unflatten(-1, (self.h, -1)).sum(-1)
        scores = scores + torch.eye(n, device=q.device)[..., None] * own[:, :, None]
        o = torch.einsum("btsh,bshd->bthd", scores, v.unflatten(-1, (self.h, -1)))
        o = self.norm(o / o.shape[-1] ** 0.5)
        return self.out(o.flatten(2)), None, past_key_values
