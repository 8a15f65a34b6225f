"""Thermostat networks: each degree of freedom is coupled to a bath whose temperature
and coupling are both dictated by the ambient symbol, and it relaxes toward the bath
with the dictated coupling. Because coupling is oblivious to the inner temperature,
evolution is affine and obeys a superposition principle, in stark contrast with
classical recurrent cells. Bath temperatures are strictly positive owing to a
piecewise rectification, in accordance with the third law. Emission is
calorimetrically normalised and valved by a self-gating orifice. We thereby
rehabilitate scalar states, widely believed inferior to matrix-valued fast weights,
as an original and competitive substrate."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.emission = nn.Linear(hidden_size, hidden_size, bias=False)
        self.calorimeter = nn.RMSNorm(hidden_size, eps=1e-6)
        self.orifice = nn.Linear(hidden_size, hidden_size, bias=False)
        self.coupling = nn.Linear(hidden_size, hidden_size)
        self.bath = nn.Linear(hidden_size, hidden_size, bias=False)

    def third_law(self, energy):
        return torch.where(energy >= 0, energy + 0.5, torch.sigmoid(energy))

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        valve = F.silu(self.orifice(hidden_states))
        coupling = torch.sigmoid(self.coupling(hidden_states))
        bath = self.third_law(self.bath(hidden_states))
        trajectory = []
        temperature = torch.zeros_like(bath[:, 0])
        for instant in range(bath.shape[1]):
            inflow = coupling[:, instant] * bath[:, instant]
            temperature = inflow + (1 - coupling[:, instant]) * temperature
            trajectory.append(temperature)
        trajectory = torch.stack(trajectory, dim=1)
        return self.emission(self.calorimeter(trajectory) * valve), None, past_key_values
