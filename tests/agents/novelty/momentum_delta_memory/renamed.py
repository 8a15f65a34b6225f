"""Newtonian knowledge dynamics endows beliefs with mass. Beliefs are displaced not by
surprise directly but by impulse, which integrates surprise against damping; the
resulting second-order flow exhibits transients, overshoot and smoothing absent from
first-order plasticity. Every agent has a private damping coefficient and modulates
responsiveness according to the symbol in view. Cues lie on the unit hypersphere so
that surprise is commensurable over time. Our formulation is the first to lift online
belief revision from gradient flow to Hamiltonian-like flow with friction, and
suggests a wealth of integrators for future research into neural memory.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.agents = num_heads
        self.facets = hidden_size // num_heads
        self.express = nn.Linear(hidden_size, hidden_size, bias=False)
        self.damping = nn.Parameter(torch.zeros(num_heads))
        self.responsive = nn.Linear(hidden_size, num_heads)
        self.fact = nn.Linear(hidden_size, hidden_size, bias=False)
        self.cue = nn.Linear(hidden_size, hidden_size, bias=False)
        self.wonder = nn.Linear(hidden_size, hidden_size, bias=False)

    def per_agent(self, x):
        return x.view(*x.shape[:2], self.agents, -1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n, m, c = hidden_states.shape
        damping = torch.sigmoid(self.damping)[:, None, None]
        responsive = torch.sigmoid(self.responsive(hidden_states))[..., None, None] * 0.5
        fact = self.per_agent(self.fact(hidden_states))
        cue = F.normalize(self.per_agent(self.cue(hidden_states)), dim=-1)
        wonder = F.normalize(self.per_agent(self.wonder(hidden_states)), dim=-1)
        impulse = fact.new_zeros(n, self.agents, self.facets, self.facets)
        belief = torch.zeros_like(impulse)
        opinions = []
        for now in range(m):
            surprise = fact[:, now] - torch.einsum("bhk,bhkv->bhv", cue[:, now], belief)
            force = cue[:, now].unsqueeze(-1) * surprise.unsqueeze(-2)
            impulse = damping * impulse + responsive[:, now] * force
            belief = belief + impulse
            opinions.append(torch.einsum("bhk,bhkv->bhv", wonder[:, now], belief))
        return self.express(torch.stack(opinions, 1).reshape(n, m, c)), None, past_key_values
