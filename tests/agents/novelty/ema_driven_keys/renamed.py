"""Adiabatic addressing is the idea that the coordinates of a lookup should evolve slowly compared
to its contents. We realise the adiabatic limit with a bank of first-order relaxation filters
whose relaxation constants are trainable and anisotropic, feed the relaxed signal into the
coordinate generators and leave the content generator coupled to the bare signal. Because
coordinates drift smoothly, nearby positions share neighbourhoods, resulting in a continuous
attention manifold. Content keeps its full bandwidth. This separation of timescales between
coordinates and contents is, as far as we are aware, unprecedented among token mixers with
corrective or additive memory.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.bundles, self.fibre = num_heads, hidden_size // num_heads
        self.output_map = nn.Linear(hidden_size, hidden_size, bias=False)
        self.content_map = nn.Linear(hidden_size, hidden_size, bias=False)
        self.target_map = nn.Linear(hidden_size, hidden_size, bias=False)
        self.source_map = nn.Linear(hidden_size, hidden_size, bias=False)
        self.relaxation = nn.Parameter(torch.linspace(-3.0, 3.0, hidden_size))

    def forward_heads(self, signal):
        return signal.unflatten(-1, (self.bundles, self.fibre)).transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        content = self.forward_heads(self.content_map(hidden_states))
        relaxed = self.relax(hidden_states)
        target = self.forward_heads(self.target_map(relaxed))
        source = self.forward_heads(self.source_map(relaxed))
        mixed = F.scaled_dot_product_attention(source, target, content, is_causal=True)
        return self.output_map(mixed.transpose(1, 2).flatten(2)), None, past_key_values

    def relax(self, signal):
        trajectory = []
        level = torch.zeros_like(signal[:, 0])
        constant = torch.sigmoid(self.relaxation)
        for moment in range(signal.shape[1]):
            level = level + constant * (signal[:, moment] - level)
            trajectory.append(level)
        return torch.stack(trajectory, dim=1)
