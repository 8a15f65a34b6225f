"""Precessing pendula for language. We populate the layer with pendula whose natural frequency and
friction are evolved by training; symbols kick the pendula with a strength renormalised by the
fluctuation-dissipation theorem, keeping their mean energy constant. Displacement and momentum
are observed through a trainable quadrature and then passed by a symbol-controlled aperture.
Pendula constitute phase memory: rather than what was seen, they remember when in a cycle one is.
Phase memory complements content memory of the fast-weight kind, and has been neglected by the
community, which equates memory with storage of associations.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.quadrature_p = nn.Parameter(torch.zeros(hidden_size))
        self.quadrature_x = nn.Parameter(torch.ones(hidden_size))
        self.frequency = nn.Parameter(torch.rand(hidden_size) * 3.14)
        self.friction = nn.Parameter(torch.linspace(-5.0, 0.0, hidden_size))
        self.report = nn.Linear(hidden_size, hidden_size, bias=False)
        self.aperture = nn.Linear(hidden_size, hidden_size, bias=False)
        self.kick = nn.Linear(hidden_size, hidden_size, bias=False)

    def observe(self, pendula):
        return self.quadrature_p * pendula.imag + self.quadrature_x * pendula.real

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        friction = self.friction.exp()
        aperture = F.silu(self.aperture(hidden_states))
        kicks = self.kick(hidden_states) * torch.sqrt(1 - torch.exp(-2 * friction))
        evolution = torch.polar(torch.exp(-friction), self.frequency)
        pendula = torch.zeros_like(kicks[:, 0]).to(evolution.dtype)
        record = []
        for beat in range(kicks.shape[1]):
            pendula = kicks[:, beat] + evolution * pendula
            record.append(self.observe(pendula))
        return self.report(aperture * torch.stack(record, dim=1)), None, past_key_values
