"""Much of what a memory layer does in practice is local, and a short convolution does it more
cheaply. We drop the memory and use a dynamic convolution in place of gates: a projection of each
token predicts the filter itself, five taps per head normalised by a softmax, which is applied
causally to the content stream with a dilation that grows from head to head. The effective filter
depends on the receiving token only, as in lightweight attention without keys, and its weights
form a distribution over lags. Dilating the filter by head covers several ranges in one layer.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads, self.width = num_heads, 5
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.filter_proj = nn.Linear(hidden_size, num_heads * self.width)
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
        taps = self.filter_proj(hidden_states).view(b, t, self.num_heads, self.width).softmax(-1)
        content = self.v_proj(hidden_states).view(b, t, self.num_heads, -1)
        mixed = []
        for head in range(self.num_heads):
            dilation = 2**head
            part = content[:, :, head]
            total = torch.zeros_like(part)
            for lag in range(self.width):
                shifted = F.pad(part, (0, 0, lag * dilation, 0))[:, :t]
                total = total + taps[:, :, head, lag].unsqueeze(-1) * shifted
            mixed.append(total)
        y = torch.stack(mixed, dim=2).reshape(b, t, d)
        return self.o_proj(y), None, past_key_values
