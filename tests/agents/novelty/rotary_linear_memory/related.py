"""Linear attention with a positive feature map has no notion of position apart from causality. We
rotate queries and keys before the outer product is stored, by angles that are not proportional
to the position index: each token predicts a non-negative rotation increment per head, and angles
are the cumulative sums of the increments times geometric frequencies. A read thus depends on an
elapsed content time, which the model may stretch in informative passages and stop in filler, and
combine with a per-head decay that fades with distance. The state is additive and there is no
delta rule.
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
        self.step_proj = nn.Linear(hidden_size, num_heads)
        self.decay = nn.Parameter(torch.linspace(1.0, 5.0, num_heads))
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def rotate(self, x, clock):
        half = self.head_dim // 2
        frequency = 100.0 ** -(torch.arange(half, device=x.device) / half)
        angle = clock.unsqueeze(-1) * frequency
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)

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
        q = self.q_proj(hidden_states).view(b, t, self.num_heads, -1).transpose(1, 2)
        k = self.k_proj(hidden_states).view(b, t, self.num_heads, -1).transpose(1, 2)
        v = self.v_proj(hidden_states).view(b, t, self.num_heads, -1).transpose(1, 2)
        clock = F.softplus(self.step_proj(hidden_states)).cumsum(1).transpose(1, 2)
        q, k = self.rotate(F.silu(q), clock), self.rotate(F.silu(k), clock)
        i = torch.arange(t, device=q.device)
        distance = (i[:, None] - i).clamp_min(0)
        fade = (distance * F.logsigmoid(self.decay)[:, None, None]).exp().tril()
        o = (q @ k.transpose(-1, -2) * fade) @ v * self.head_dim**-0.5
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
