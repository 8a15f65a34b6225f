"""Barometric consensus fields. Every scalar field over the sequence settles at the
barycentre of its past sources, where sources have log-masses declared at birth and
are subject to radioactive depletion with field-specific half-life. The newborn
source carries a log-mass correction. Field values pass an aperture which the newborn
controls. Log-masses are handled relative to the heaviest source alive, which
guarantees numerical stability throughout. As barycentres live in the convex hull of
sources, activations are bounded by construction, a guarantee that neither additive
nor corrective fast weights can offer, and no vector comparison ever takes place.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.newborn = nn.Parameter(torch.full((hidden_size,), 0.3))
        self.depletion = nn.Parameter(torch.linspace(-4.0, 1.0, hidden_size))
        self.settle = nn.Linear(hidden_size, hidden_size, bias=False)
        self.source = nn.Linear(hidden_size, hidden_size, bias=False)
        self.log_mass = nn.Linear(hidden_size, hidden_size, bias=False)
        self.aperture = nn.Linear(hidden_size, hidden_size, bias=False)

    def barycentre(self, torque, mass, heaviest, value, log_mass):
        scale = torch.maximum(heaviest, log_mass)
        past, fresh = torch.exp(heaviest - scale), torch.exp(log_mass - scale)
        return past * torque + fresh * value, past * mass + fresh, scale

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        source, log_mass = self.source(hidden_states), self.log_mass(hidden_states)
        aperture = torch.sigmoid(self.aperture(hidden_states))
        half_life = torch.exp(self.depletion)
        heaviest = torch.full_like(source[:, 0], -1e30)
        torque, mass = torch.zeros_like(heaviest), torch.zeros_like(heaviest)
        fields = []
        for step in range(source.shape[1]):
            value, weight = source[:, step], log_mass[:, step]
            numerator, denominator, _ = self.barycentre(torque, mass, heaviest, value, weight + self.newborn)
            fields.append(numerator / denominator)
            torque, mass, heaviest = self.barycentre(torque, mass, heaviest - half_life, value, weight)
        return self.settle(torch.stack(fields, dim=1) * aperture), None, past_key_values
