"""Associative recall needs keys that describe the neighbourhood, yet in many layers the convolution
applied to values is a fixed filter. We convolve the values with a short causal depthwise filter
before they are written into a linear attention memory, and predict the filter taps from the
current token, one set per head, normalised by a softmax over the taps. A key then retrieves a
small n-gram summary whose extent the token itself has chosen, while queries and keys stay
pointwise. A bias starts the taps near the identity. The feature map is positive with a running
normaliser in place of the delta rule.
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
        self.tap_proj = nn.Linear(hidden_size, num_heads * self.kernel)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        with torch.no_grad():
            self.tap_proj.bias.view(num_heads, self.kernel)[:, -1] += 2.0

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
        v = self.v_proj(hidden_states).view(b, t, self.num_heads, -1)
        taps = self.tap_proj(hidden_states).view(b, t, self.num_heads, self.kernel).softmax(-1)
        windows = F.pad(v, (0, 0, 0, 0, self.kernel - 1, 0)).unfold(1, self.kernel, 1)
        v = torch.einsum("bthdk,bthk->bthd", windows, taps).transpose(1, 2)
        q = F.elu(self.q_proj(hidden_states)) + 1
        k = F.elu(self.k_proj(hidden_states)) + 1
        q, k = (x.view(b, t, self.num_heads, -1).transpose(1, 2) for x in (q, k))
        scores = (q @ k.transpose(-1, -2)).tril()
        o = scores @ v / scores.sum(-1, keepdim=True).clamp_min(1e-6)
        o = o.transpose(1, 2).reshape(b, t, d)
        return self.o_proj(o), None, past_key_values
