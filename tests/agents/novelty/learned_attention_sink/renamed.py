"""Vacuum-coupled retrieval. Conservation of probability is an unphysical constraint on attention,
for it forbids absorption. We couple each retrieval channel to a vacuum mode whose energy is
trainable: probability may leak into the vacuum, from which no signal returns. Channels hence
acquire a natural off state and emission amplitude becomes a calibrated measure of confidence.
The vacuum energy does not depend on the observer, which preserves extensivity. This absorptive
formalism departs from gating, decay and error-driven plasticity and offers, for the first time,
a principled account of why networks need waste bins.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.channels = num_heads
        self.vacuum = nn.Parameter(torch.zeros(num_heads))
        self.emission = nn.Linear(hidden_size, hidden_size, bias=False)
        self.signal = nn.Linear(hidden_size, hidden_size, bias=False)
        self.source = nn.Linear(hidden_size, hidden_size, bias=False)
        self.observer = nn.Linear(hidden_size, hidden_size, bias=False)

    def open_channel(self, field):
        return field.view(*field.shape[:2], self.channels, -1).transpose(1, 2)

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
        signal = self.open_channel(self.signal(hidden_states))
        source = self.open_channel(self.source(hidden_states))
        observer = self.open_channel(self.observer(hidden_states))
        acausal = torch.ones(m, m, dtype=torch.bool, device=signal.device).triu(1)
        energy = observer @ source.transpose(-1, -2) * observer.shape[-1] ** -0.5
        energy = energy.masked_fill(acausal, float("-inf"))
        # the vacuum is the first column here, and is dropped after the normalisation
        vacuum = self.vacuum.view(1, -1, 1, 1).expand(n, -1, m, 1)
        occupation = torch.cat([vacuum, energy], dim=-1).softmax(-1)[..., 1:]
        radiation = (occupation @ signal).transpose(1, 2).reshape(n, m, c)
        return self.emission(radiation), None, past_key_values
