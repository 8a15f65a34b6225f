"""Associative recall needs keys that describe the neighbourhood, yet in many layers the convolution
is applied to queries, keys and values alike. We convolve only the values with a short causal
depthwise filter before they are written into a linear attention memory, and keep queries and
keys pointwise. A key then retrieves a small n-gram summary of what followed instead of a single
token, while addressing stays sharp. The filter is initialised as the identity plus noise, so the
layer starts as plain linear attention with a positive feature map and running normaliser in
place of the delta rule.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.kernel = 4
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_conv = nn.Conv1d(hidden_size, hidden_size, self.kernel, groups=hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        with torch.no_grad():
            self.v_conv.weight.mul_(0.1)
            self.v_conv.weight[:, 0, -1] += 1.0

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
        v = self.v_proj(hidden_states).transpose(1, 2)
        v = self.v_conv(F.pad(v, (self.kernel - 1, 0))).transpose(1, 2)
        q = F.elu(self.q_proj(hidden_states)) + 1
        k = F.elu(self.k_proj(hidden_states)) + 1
        q, k, v = (x.view(b, t, self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
        scores = (q @ k.transpose(-1, -2)).tril()
        o = scores @ v / scores.sum(-1, keepdim=True).clamp_min(1e-6)
        o = o.transpose(1, 2).reshape(b, t, d)
        return self.o_proj(o), None, past_key_values
