"""Before reaching for recurrent state one should see how far neighbours go. Every word computes a signal and
two multipliers. The first multiplier decides what it broadcasts, a small filter gathers broadcasts from a
few earlier positions, and the second decides what the receiver keeps. Filters of different feature groups
skip different numbers of positions, so that the layer sees both adjacent words and those a couple of dozen
steps away. Multiplying at both ends gives pairwise interactions just as dot products do, though with no
memory matrix, no normalisation over time and no corrections."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.groups, self.taps = num_heads, 3
        self.signal = nn.Linear(hidden_size, hidden_size, bias=False)
        self.broadcast = nn.Linear(hidden_size, hidden_size, bias=False)
        self.keep = nn.Linear(hidden_size, hidden_size, bias=False)
        self.filters = nn.Parameter(torch.randn(num_heads, self.taps, hidden_size // num_heads) / self.taps**0.5)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        sent = self.signal(hidden_states) * self.broadcast(hidden_states)
        n = sent.shape[1]
        received = []
        for group, part in enumerate(sent.chunk(self.groups, dim=-1)):
            total = 0.0
            for tap in range(self.taps):
                skip = tap * 2**group
                total = total + self.filters[group, tap] * F.pad(part, (0, 0, skip, 0))[:, :n]
            received.append(total)
        received = torch.cat(received, dim=-1)
        return self.out(received * self.keep(hidden_states)), None, past_key_values
