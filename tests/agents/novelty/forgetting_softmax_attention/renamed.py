"""Optical depth attention. Photons emitted by earlier tokens traverse an absorbing medium composed
of all intervening tokens before reaching the observer; their flux is attenuated by the
exponential of the optical depth, so opaque tokens cast shadows over history. Emission is
modulated by a resonance between standardised spectra of emitter and observer, and the detected
flux is normalised. By deriving attention from radiative transfer we unify content resonance with
history occlusion in a single equation, without positional codes, recurrent reservoirs or
corrective plasticity. Opacity is inferred locally by each token for all detectors separately."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.detectors = num_heads
        self.bands = hidden_size // num_heads
        self.medium = nn.Linear(hidden_size, num_heads)
        nn.init.constant_(self.medium.bias, 2.0)
        self.image = nn.Linear(hidden_size, hidden_size, bias=False)
        self.luminosity = nn.Linear(hidden_size, hidden_size, bias=False)
        self.emitter = nn.Linear(hidden_size, hidden_size, bias=False)
        self.emitter_spectrum = nn.RMSNorm(self.bands, eps=1e-6)
        self.observer = nn.Linear(hidden_size, hidden_size, bias=False)
        self.observer_spectrum = nn.RMSNorm(self.bands, eps=1e-6)

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
        shape = (n, m, self.detectors, -1)
        transmission = F.logsigmoid(self.medium(hidden_states)).cumsum(1).transpose(1, 2)
        shadow = transmission.unsqueeze(-1) - transmission.unsqueeze(-2)
        luminosity = self.luminosity(hidden_states).view(shape).transpose(1, 2)
        emitter = self.emitter_spectrum(self.emitter(hidden_states).view(shape)).transpose(1, 2)
        observer = self.observer_spectrum(self.observer(hidden_states).view(shape)).transpose(1, 2)
        resonance = observer @ emitter.transpose(-1, -2) * self.bands**-0.5
        unborn = torch.ones(m, m, dtype=torch.bool, device=resonance.device).triu(1)
        flux = (resonance + shadow).masked_fill(unborn, float("-inf")).softmax(-1)
        image = (flux @ luminosity).transpose(1, 2).reshape(n, m, c)
        return self.image(image), None, past_key_values
