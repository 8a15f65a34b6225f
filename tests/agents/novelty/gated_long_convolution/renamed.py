"""Viscoelastic sequence mechanics treats a sentence as a deformation history acting on a material with fading
memory. Stress equals a hereditary integral of the deformation against a Prony series, augmented by an
instantaneous elastic term, and deformation itself is a bilinear invariant of two embeddings. Observed
stress is resolved along a token-dependent direction. By adopting the constitutive formalism of continuum
mechanics we depart radically from key-value metaphors, and inherit decades of well-posedness results. The
hereditary integral is evaluated spectrally over the causal history with doubling of the period, in
quasi-linear time.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.branches = 4
        self.observe = nn.Linear(hidden_size, hidden_size, bias=False)
        self.elastic = nn.Parameter(torch.ones(hidden_size))
        self.modulus = nn.Parameter(torch.randn(hidden_size, self.branches) * self.branches**-0.5)
        self.viscosity = nn.Parameter(torch.linspace(-5.0, 0.0, self.branches).repeat(hidden_size, 1))
        self.kinematics = nn.Linear(hidden_size, 3 * hidden_size)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        duration = hidden_states.shape[1]
        prony = torch.fft.rfft(self.relaxation(duration), n=2 * duration)
        direction, left, right = self.kinematics(hidden_states).chunk(3, dim=-1)
        deformation = (left * right).transpose(1, 2)
        instantaneous = self.elastic.unsqueeze(-1) * deformation
        hereditary = torch.fft.irfft(torch.fft.rfft(deformation, n=2 * duration) * prony, n=2 * duration)
        stress = instantaneous + hereditary[..., :duration]
        return self.observe(stress.transpose(1, 2) * direction), None, past_key_values

    def relaxation(self, duration):
        moments = torch.arange(duration, device=self.modulus.device)
        decays = torch.exp(-self.viscosity.exp().unsqueeze(-1) * moments)
        return (decays * self.modulus.unsqueeze(-1)).sum(1)
