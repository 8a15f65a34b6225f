"""Ontogenic concept cells: we grow, during inference, a small population of cells, each of which
converges to an abstract concept defined jointly by a receptive pattern and a response pattern.
Recruitment is probabilistic, every stimulus being split among cells by a competitive recruitment
code, and both patterns follow the recruited centre of mass. Perception amounts to a second
competition in which a probe is compared with receptive patterns and elicits a blend of
responses. Unlike superposition memories with corrective plasticity, concept cells are
disentangled by construction, a property we believe is essential for robust lifelong abstraction."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.cells = 8
        self.populations = num_heads
        self.response = nn.Linear(hidden_size, hidden_size, bias=False)
        self.recruit = nn.Linear(hidden_size, num_heads * self.cells)
        self.express = nn.Linear(hidden_size, hidden_size, bias=False)
        self.receptive = nn.Linear(hidden_size, hidden_size, bias=False)
        self.probe = nn.Linear(hidden_size, hidden_size, bias=False)

    def centre(self, pattern, recruited, mass):
        return (recruited.unsqueeze(-1) * pattern.unsqueeze(-2)).cumsum(1) / mass

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
        layout = (n, m, self.populations, -1)
        recruited = self.recruit(hidden_states).view(n, m, self.populations, self.cells).softmax(-1)
        mass = recruited.cumsum(1).unsqueeze(-1) + 1e-6
        responses = self.centre(self.response(hidden_states).view(layout), recruited, mass)
        patterns = self.centre(self.receptive(hidden_states).view(layout), recruited, mass)
        probe = self.probe(hidden_states).view(layout)
        contest = torch.einsum("bthd,bthsd->bths", probe, patterns) * probe.shape[-1] ** -0.5
        blend = torch.einsum("bths,bthsd->bthd", contest.softmax(-1), responses)
        return self.express(blend.reshape(n, m, c)), None, past_key_values
