"""Entangled percept channels. Decoherence between channels, implicit in every
multi-channel mixer, destroys correlations before they can be exploited. We preserve
them through two unitary-inspired couplings, one acting upon amplitudes prior to
measurement and the other upon outcome probabilities afterwards. Couplings are
initialised at the decoupled point and drift away only if correlations pay off. The
pre-measurement coupling effects superposition of relevance, the post-measurement
coupling effects redistribution of evidence. To our knowledge no fast-weight, gated
or corrective memory has addressed decoherence, and our remedy costs but a few dozen
numbers.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.channels = num_heads
        self.collapse = nn.Linear(hidden_size, hidden_size, bias=False)
        self.outcome_coupling = nn.Parameter(torch.eye(num_heads))
        self.amplitude_coupling = nn.Parameter(torch.eye(num_heads))
        self.content = nn.Linear(hidden_size, hidden_size, bias=False)
        self.state = nn.Linear(hidden_size, hidden_size, bias=False)
        self.probe = nn.Linear(hidden_size, hidden_size, bias=False)

    def channel(self, field):
        n, m, _ = field.shape
        return field.view(n, m, self.channels, -1).transpose(1, 2)

    def couple(self, coupling, field):
        return torch.einsum("gh,bhts->bgts", coupling, field)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        content = self.channel(self.content(hidden_states))
        probe = self.channel(self.probe(hidden_states))
        state = self.channel(self.state(hidden_states))
        amplitude = probe @ state.transpose(-1, -2) * state.shape[-1] ** -0.5
        amplitude = self.couple(self.amplitude_coupling, amplitude)
        size = amplitude.shape[-1]
        acausal = torch.ones(size, size, dtype=torch.bool, device=amplitude.device).triu(1)
        outcome = amplitude.masked_fill(acausal, float("-inf")).softmax(-1)
        expectation = self.couple(self.outcome_coupling, outcome) @ content
        return self.collapse(expectation.transpose(1, 2).reshape(hidden_states.shape)), None, past_key_values
