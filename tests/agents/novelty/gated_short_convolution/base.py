"""Much of what a memory layer does in practice is local, and a short convolution does it more cheaply. We drop the
memory and use a doubly gated convolution: three projections give a content stream, an input gate and an output
gate; the content is multiplied by the input gate, passed through a causal depthwise convolution of width five, and
multiplied by the output gate. The gates make the effective filter depend on the tokens at both ends, which mimics
queries and keys at a fraction of the cost. Dilating the filter by head covers several ranges in one layer.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads, self.width = num_heads, 5
        self.in_proj = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        channels = hidden_size // num_heads
        self.convs = nn.ModuleList(
            [
                nn.Conv1d(channels, channels, self.width, dilation=2**i, groups=channels, bias=False)
                for i in range(num_heads)
            ]
        )
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
        content, gate_in, gate_out = self.in_proj(hidden_states).chunk(3, dim=-1)
        x = (content * gate_in).transpose(1, 2).chunk(self.num_heads, dim=1)
        mixed = []
        for part, conv in zip(x, self.convs, strict=True):
            padding = (self.width - 1) * conv.dilation[0]
            mixed.append(conv(F.pad(part, (padding, 0))))
        y = torch.cat(mixed, dim=1).transpose(1, 2)
        return self.o_proj(y * gate_out), None, past_key_values
