"""A DeltaNet layer relies on convolutions for local context, which triples the cost of its input
path. We replace them with a data-dependent token shift: queries, keys and values are each
projected from a channel-wise interpolation between the current token and the one before it, and
the interpolation weights are predicted by a low-rank network from the pair of tokens itself.
Every stream thus decides for each token how much to look back, so the memory can form bigram
associations only where they help. The rest is linear attention with a fixed geometric decay for
each head and normalised output.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    """Dynamic token shift in front of a retention memory."""

    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.base_mix = nn.Parameter(torch.full((hidden_size,), 0.5))
        self.down = nn.Linear(hidden_size, 3 * 8, bias=False)
        self.up = nn.Parameter(torch.randn(3, 8, hidden_size) * 0.1)
        self.offset = nn.Parameter(torch.full((3, hidden_size), 0.7))
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.group_norm = nn.GroupNorm(num_heads, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.register_buffer("log_decay", torch.log1p(-(2.0 ** -torch.arange(3, 3 + num_heads))), persistent=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        x = hidden_states
        b, t, d = x.shape
        previous = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        low = torch.tanh(self.down(torch.lerp(previous, x, self.base_mix))).view(b, t, 3, 8)
        mix = (torch.einsum("btnr,nrd->nbtd", low, self.up) + self.offset[:, None, None]).unbind(0)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x * m + previous * (1 - m)) for p, m in zip(projections, mix, strict=True))
        q, k, v = (y.view(b, t, self.num_heads, -1).transpose(1, 2) for y in (q, k, v))
        i = torch.arange(t, device=x.device)
        distance = (i[:, None] - i[None, :]).clamp_min(0)
        decay = (distance * self.log_decay[:, None, None]).exp().tril()
        o = (q @ k.transpose(-1, -2) * decay) @ v * (d // self.num_heads) ** -0.5
        o = self.group_norm(o.transpose(1, 2).reshape(b * t, d)).view(b, t, d)
        return self.o_proj(o), None, past_key_values
