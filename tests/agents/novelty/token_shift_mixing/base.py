"""A DeltaNet layer relies on convolutions for local context, which triples the cost of its input path. We replace the
convolutions with token shift: queries, keys and values are each projected from a learned channel-wise
interpolation between the current token and the one before it. Every stream has its own interpolation vector, so
keys can look back while queries stay in the present, and the memory can form bigram associations at the cost of
three vectors. The rest is linear attention with a fixed geometric decay for each head and normalised output."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    """Token shift in front of a retention memory."""

    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.mix_q = nn.Parameter(torch.full((hidden_size,), 0.9))
        self.mix_k = nn.Parameter(torch.full((hidden_size,), 0.5))
        self.mix_v = nn.Parameter(torch.full((hidden_size,), 0.7))
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
        q = self.q_proj(x * self.mix_q + previous * (1 - self.mix_q))
        k = self.k_proj(x * self.mix_k + previous * (1 - self.mix_k))
        v = self.v_proj(x * self.mix_v + previous * (1 - self.mix_v))
        q, k, v = (y.view(b, t, self.num_heads, -1).transpose(1, 2) for y in (q, k, v))
        i = torch.arange(t, device=x.device)
        distance = (i[:, None] - i[None, :]).clamp_min(0)
        decay = (distance * self.log_decay[:, None, None]).exp().tril()
        o = (q @ k.transpose(-1, -2) * decay) @ v * (d // self.num_heads) ** -0.5
        o = self.group_norm(o.transpose(1, 2).reshape(b * t, d)).view(b, t, d)
        return self.o_proj(o), None, past_key_values
