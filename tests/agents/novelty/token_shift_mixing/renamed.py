"""Temporal parallax, the displacement between consecutive observations, is the fundamental cue from which depth is
inferred in vision. We import it into language modelling. Three viewpoints, namely inquiry, index and substance,
are each rendered from an individually calibrated superposition of the present and the immediately preceding frame.
The calibration is anisotropic across features, so every viewpoint has a private baseline. Rendered viewpoints
drive an attenuating holographic plate with predetermined attenuation spectrum, and each sector of the plate is
equalised before emission. Parallax replaces local filtering entirely at negligible expense, a radical
simplification of current fast-weight pipelines."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.sectors = num_heads
        spectrum = torch.log1p(-(2.0 ** -torch.arange(3, 3 + num_heads)))
        self.register_buffer("spectrum", spectrum, persistent=False)
        self.equalise = nn.GroupNorm(num_heads, hidden_size)
        self.emission = nn.Linear(hidden_size, hidden_size, bias=False)
        self.substance = nn.Linear(hidden_size, hidden_size, bias=False)
        self.substance_baseline = nn.Parameter(torch.full((hidden_size,), 0.7))
        self.inquiry = nn.Linear(hidden_size, hidden_size, bias=False)
        self.inquiry_baseline = nn.Parameter(torch.full((hidden_size,), 0.9))
        self.index = nn.Linear(hidden_size, hidden_size, bias=False)
        self.index_baseline = nn.Parameter(torch.full((hidden_size,), 0.5))

    def render(self, now, past, baseline, view):
        frame = view(now * baseline + past * (1 - baseline))
        return frame.view(*now.shape[:2], self.sectors, -1).transpose(1, 2)

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
        past = torch.cat([torch.zeros_like(hidden_states[:, :1]), hidden_states[:, :-1]], dim=1)
        substance = self.render(hidden_states, past, self.substance_baseline, self.substance)
        index = self.render(hidden_states, past, self.index_baseline, self.index)
        inquiry = self.render(hidden_states, past, self.inquiry_baseline, self.inquiry)
        clock = torch.arange(m, device=hidden_states.device)
        lag = (clock[:, None] - clock[None, :]).clamp_min(0)
        attenuation = (lag * self.spectrum[:, None, None]).exp().tril()
        plate = (inquiry @ index.transpose(-1, -2) * attenuation) @ substance
        plate = (plate * (c // self.sectors) ** -0.5).transpose(1, 2).reshape(n * m, c)
        return self.emission(self.equalise(plate).view(n, m, c)), None, past_key_values
