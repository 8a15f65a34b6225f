"""The delta rule is one step of gradient descent per token, and its size is hard to choose: a step that suits
frequent keys is too small for rare ones. We replace the scalar step by an adaptive one. The squared keys update a
running second moment for each key channel that decays with a learned factor per head, and the write along a
channel is divided by the square root of its moment, so directions seen rarely receive large steps whereas crowded
ones are damped. The base step size is predicted from the token, and the error is taken at the current memory, so
the correction of old content survives."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.step = nn.Linear(hidden_size, num_heads)
        self.decay = nn.Parameter(torch.full((num_heads,), 2.0))
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        b, t, d = hidden_states.shape
        q, k, v = (p(hidden_states).view(b, t, self.num_heads, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        step = torch.sigmoid(self.step(hidden_states)).unsqueeze(-1) * 0.5
        decay = torch.sigmoid(self.decay).unsqueeze(-1)
        memory = v.new_zeros(b, self.num_heads, self.head_dim, self.head_dim)
        moment = v.new_full((b, self.num_heads, self.head_dim), 1.0 / self.head_dim)
        outputs = []
        for i in range(t):
            moment = decay * moment + (1 - decay) * k[:, i].square()
            error = v[:, i] - torch.einsum("bhk,bhkv->bhv", k[:, i], memory)
            scaled = k[:, i] * torch.rsqrt(moment * self.head_dim + 0.1)
            scaled = F.normalize(scaled, dim=-1) * step[:, i]
            memory = memory + scaled.unsqueeze(-1) * error.unsqueeze(-2)
            outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, i], memory))
        return self.o_proj(torch.stack(outputs, 1).reshape(b, t, d)), None, past_key_values
