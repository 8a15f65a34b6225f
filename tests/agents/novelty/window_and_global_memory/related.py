"""Linear memories blur the recent past, where exact copying matters most. We use the same queries, keys and
values for softmax attention restricted to a sliding window of sixteen tokens and for a global linear
attention with a positive feature map, but not as two branches with a gate: the linear memory holds only
tokens that have left the window, and the exponential weights inside the window and the kernel weights
outside share a single normaliser. Local recall and compressed long-range recall compete directly for
probability mass, and every token of the prefix is counted exactly once. A learned scale for each head
balances the two kinds of weight."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.window = 16
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.balance = nn.Parameter(torch.zeros(num_heads))
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
        q, k, v = self.qkv(hidden_states).view(b, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        i = torch.arange(t, device=q.device)
        distance = i[:, None] - i[None, :]
        inside = (distance >= 0) & (distance < self.window)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        peak = scores.masked_fill(~inside, float("-inf")).amax(-1, keepdim=True)
        local = (scores - peak).masked_fill(~inside, float("-inf")).exp()
        scale = torch.exp(self.balance.view(-1, 1, 1) - peak)
        distant = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2) * (distance >= self.window) * scale
        weights = local + distant
        o = weights @ v / weights.sum(-1, keepdim=True)
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
