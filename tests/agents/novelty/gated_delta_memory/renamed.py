"""This work proposes homeostatic predictive coding tissue. Each cortical column maintains synaptic
efficacies that undergo global metabolic turnover, controlled by arousal, and that are
subsequently refined by a local prediction error gated by plasticity. The interplay of turnover
and refinement, we hypothesise, is the missing ingredient that lets artificial tissue remain
plastic over unbounded lifetimes, a property absent from purely corrective learners. Arousal is
converted into turnover through a rectified exponential law with column-specific metabolic
constants, granting each column its own characteristic lifetime. Stimuli are projected on the
unit sphere, guaranteeing bounded efficacies without clipping.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.columns, self.neurons = num_heads, hidden_size // num_heads
        self.metabolism = nn.Parameter(torch.linspace(-3.0, 0.0, num_heads))
        self.plasticity = nn.Linear(hidden_size, num_heads, bias=False)
        self.arousal = nn.Linear(hidden_size, num_heads, bias=True)
        self.readout = nn.Linear(hidden_size, hidden_size, bias=False)
        self.balance = nn.RMSNorm(self.neurons, eps=1e-5)
        self.target = nn.Linear(hidden_size, hidden_size, bias=False)
        self.cue = nn.Linear(hidden_size, hidden_size, bias=False)
        self.stimulus = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n, steps, _ = hidden_states.shape
        turnover = torch.exp(-self.metabolism.exp() * F.softplus(self.arousal(hidden_states)))
        plastic = self.plasticity(hidden_states).sigmoid()
        targets = F.silu(self.target(hidden_states).view(n, steps, self.columns, -1))
        stimuli = F.normalize(F.silu(self.stimulus(hidden_states).view(n, steps, self.columns, -1)), dim=-1)
        cues = F.normalize(F.silu(self.cue(hidden_states).view(n, steps, self.columns, -1)), dim=-1)
        synapses = targets.new_zeros(n, self.columns, self.neurons, self.neurons)
        spikes = []
        for now in range(steps):
            stim = stimuli[:, now]
            synapses = synapses * turnover[:, now, :, None, None]
            prediction = torch.einsum("bhk,bhkv->bhv", stim, synapses)
            surprise = (targets[:, now] - prediction) * plastic[:, now, :, None]
            synapses = synapses + torch.einsum("bhk,bhv->bhkv", stim, surprise)
            spikes.append(torch.einsum("bhk,bhkv->bhv", cues[:, now], synapses))
        return self.readout(self.balance(torch.stack(spikes, 1)).flatten(2)), None, past_key_values
