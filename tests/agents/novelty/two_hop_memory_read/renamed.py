"""Recursive introspection: cognition seldom ends with the first thing that comes to mind. We enable
associative substrates to introspect upon their own output. An initial evocation is transduced
into cue space by an introspective operator, superposed on the original cue, renormalised and
presented anew; evocations of both passes are merged with trainable weight. Substrates accumulate
Hebbian traces subject to homogeneous leakage. It is important to note that introspection does
not interfere with trace formation. In our view recursive introspection is the minimal mechanism
for compositional recall, which the literature has associated exclusively with depth."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.minds, self.facets = num_heads, hidden_size // num_heads
        self.utter = nn.Linear(hidden_size, hidden_size, bias=False)
        self.leakage = nn.Parameter(torch.full((num_heads,), 4.0))
        self.initial_share = nn.Parameter(torch.full((num_heads, 1), 0.5))
        self.introspect = nn.Parameter(torch.randn(num_heads, self.facets, self.facets) * self.facets**-0.5)
        self.trace = nn.Linear(hidden_size, hidden_size, bias=False)
        self.index = nn.Linear(hidden_size, hidden_size, bias=False)
        self.cue = nn.Linear(hidden_size, hidden_size, bias=False)

    def evoke(self, cue, substrate):
        return torch.einsum("bhk,bhkv->bhv", cue, substrate)

    def think(self, cue, substrate):
        initial = self.evoke(cue, substrate)
        deeper = cue + torch.einsum("bhv,hvk->bhk", initial, self.introspect)
        deeper = deeper / (deeper.norm(dim=-1, keepdim=True) + 1e-3)
        return self.initial_share * initial + self.evoke(deeper, substrate)

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
        retain = torch.sigmoid(self.leakage).view(-1, 1, 1)
        trace = self.trace(hidden_states).view(n, m, self.minds, -1)
        index = F.normalize(self.index(hidden_states).view(n, m, self.minds, -1), dim=-1)
        cue = F.normalize(self.cue(hidden_states).view(n, m, self.minds, -1), dim=-1)
        substrate = trace.new_zeros(n, self.minds, self.facets, self.facets)
        thoughts = []
        for moment in range(m):
            substrate = retain * substrate + index[:, moment].unsqueeze(-1) * trace[:, moment].unsqueeze(-2)
            thoughts.append(self.think(cue[:, moment], substrate))
        return self.utter(torch.stack(thoughts, dim=1).reshape(n, m, c)), None, past_key_values
