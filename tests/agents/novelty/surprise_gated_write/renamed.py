"""Neuromodulated cortical plasticity with endogenous novelty detection. Dopaminergic bursts scale with
unsigned reward prediction error; we transplant this fact into token mixing. A burst detector integrates
the energy of the discrepancy between imagined and actual percept and, jointly with tonic drive issued by
the symbol, gates the induction of plasticity. Bursts emerge inside the recurrence and cannot be
anticipated by feed-forward means, making the layer state-aware in a way that fast-weight layers are not.
Detector gain is private to each nucleus. We foresee broad implications for continual learning and memory
consolidation.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.nuclei, self.cells = num_heads, hidden_size // num_heads
        self.motor = nn.Linear(hidden_size, hidden_size, bias=False)
        self.burst_gain = nn.Parameter(torch.ones(num_heads))
        self.tonic = nn.Linear(hidden_size, num_heads)
        self.percept = nn.Linear(hidden_size, hidden_size, bias=False)
        self.afferent = nn.Linear(hidden_size, hidden_size, bias=False)
        self.imagery = nn.Linear(hidden_size, hidden_size, bias=False)

    def burst(self, discrepancy, tonic):
        energy = torch.sqrt(discrepancy.square().mean(-1) + 1e-6)
        return torch.sigmoid(self.burst_gain * energy + tonic).unsqueeze(-1)

    def by_nucleus(self, x):
        return x.view(*x.shape[:2], self.nuclei, -1)

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
        tonic = self.tonic(hidden_states)
        percept = self.by_nucleus(self.percept(hidden_states))
        afferent = F.normalize(F.silu(self.by_nucleus(self.afferent(hidden_states))), dim=-1)
        imagery = F.normalize(F.silu(self.by_nucleus(self.imagery(hidden_states))), dim=-1)
        weights = percept.new_zeros(n, self.nuclei, self.cells, self.cells)
        actions = []
        for now in range(m):
            source = afferent[:, now]
            discrepancy = percept[:, now] - torch.einsum("bhk,bhkv->bhv", source, weights)
            plasticity = self.burst(discrepancy, tonic[:, now]) * discrepancy
            weights = weights + source.unsqueeze(-1) * plasticity.unsqueeze(-2)
            actions.append(torch.einsum("bhk,bhkv->bhv", imagery[:, now], weights))
        return self.motor(torch.stack(actions, dim=1).reshape(n, m, c)), None, past_key_values
