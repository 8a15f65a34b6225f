"""Inspired by leaky integrate-and-fire dynamics, we introduce a membrane memory: a bank of leaky matrices that is
integrated one step at a time, where the conductance of each membrane is controlled by the stimulus itself.
Compared with a delta-rule layer the membrane needs no error signal, because leaking already prevents saturation,
and compared with attention it carries a constant-size potential. The conductance is shared by all synapses of a
membrane, which keeps the dynamics interpretable: a membrane is either in a retentive or in a volatile regime. A
readout stimulus is applied to the membrane after every integration step, followed by homeostatic normalisation.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.conductance = nn.Parameter(torch.randn(hidden_size, num_heads) / hidden_size**0.5)
        self.offset = nn.Parameter(torch.zeros(num_heads))
        self.gain = nn.Parameter(torch.zeros(self.head_dim))
        self.shift = nn.Parameter(torch.zeros(self.head_dim))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def homeostasis(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * (1 + self.gain) + self.shift

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        q, k, v = self.qkv(hidden_states).chunk(3, dim=-1)
        q, k = q * q.sigmoid(), k * k.sigmoid()
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in (q, k, v))
        keep = torch.sigmoid(hidden_states @ self.conductance + self.offset).pow(1 / 8)
        membrane = hidden_states.new_zeros(len(q), self.num_heads, self.head_dim, self.head_dim)
        reads = []
        for t in range(q.shape[1]):
            membrane = keep[:, t, :, None, None] * membrane + k[:, t, :, :, None] * v[:, t, :, None, :]
            reads.append((q[:, t].unsqueeze(-1) * membrane).sum(-2))
        o = torch.stack(reads, dim=1) / self.head_dim**0.5
        return self.out(self.homeostasis(o).flatten(2)), None, past_key_values
