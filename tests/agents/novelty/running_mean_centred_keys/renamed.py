"""Cosmological background subtraction: as observers embedded in a luminous universe,
tokens are blinded by the diffuse glow of their own history. We estimate the glow as
the past average of landmark fields, attenuate it by a trainable albedo in each sky
sector, and subtract it both from landmarks and from telescopes, whereupon all
directions are projected onto the celestial sphere. What remains are anisotropies,
known to carry all of the information. Anisotropies index an editable star catalogue
whose revision rate is learned. This is the first token mixer to be derived from
background subtraction.
"""

import torch
import torch.nn.functional as F
from torch import nn

from kernels.delta_rule import delta_rule


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.sectors = num_heads
        self.publication = nn.Linear(hidden_size, hidden_size, bias=False)
        self.calibration = nn.RMSNorm(hidden_size // num_heads, eps=1e-5)
        self.albedo = nn.Parameter(torch.ones(num_heads))
        self.revision = nn.Linear(hidden_size, num_heads, bias=False)
        self.star = nn.Linear(hidden_size, hidden_size, bias=False)
        self.landmark = nn.Linear(hidden_size, hidden_size, bias=False)
        self.telescope = nn.Linear(hidden_size, hidden_size, bias=False)

    def sky(self, x):
        return x.view(*x.shape[:2], self.sectors, -1)

    def glow(self, landmark):
        age = torch.arange(1, landmark.shape[1] + 1, device=landmark.device).view(1, -1, 1, 1)
        history = F.pad(landmark.cumsum(1)[:, :-1], (0, 0, 0, 0, 1, 0))
        return history / age * self.albedo.view(1, 1, -1, 1)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        revision = torch.sigmoid(self.revision(hidden_states))
        star = F.silu(self.sky(self.star(hidden_states)))
        landmark = self.sky(self.landmark(hidden_states))
        glow = self.glow(landmark)
        telescope = F.normalize(self.sky(self.telescope(hidden_states)) - glow, dim=-1)
        landmark = F.normalize(landmark - glow, dim=-1)
        catalogue, _ = delta_rule(telescope, landmark, star, revision)
        return self.publication(self.calibration(catalogue).reshape(hidden_states.shape)), None, past_key_values
