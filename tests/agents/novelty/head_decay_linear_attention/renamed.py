"""We present chronologically modulated associative fields, a paradigm in which every
associative field carries an endogenous relaxation constant. Rather than relying on
interference-driven overwriting, the field relaxes towards vacuum at a rate that is
inferred from the present symbol, which produces an emergent hierarchy of persistence
across fields. The resulting propagator between two instants is the exponential of an
accumulated action, available in closed form. We argue that this endows sequence
models with an intrinsic notion of elapsed semantic time that conventional
fast-weight programmers lack altogether, at practically no additional parameter cost.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.n_fields = num_heads
        self.field_size = hidden_size // num_heads
        self.relaxation = nn.Linear(hidden_size, num_heads)
        self.emit = nn.Linear(hidden_size, hidden_size, bias=False)
        self.content = nn.Linear(hidden_size, hidden_size, bias=False)
        self.address = nn.Linear(hidden_size, hidden_size, bias=False)
        self.probe = nn.Linear(hidden_size, hidden_size, bias=False)
        self.standardise = nn.LayerNorm(self.field_size)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        b, n, _ = hidden_states.shape
        # relaxation first: the propagator does not depend on the contents
        rate = F.logsigmoid(self.relaxation(hidden_states)) / 8.0
        action = rate.cumsum(1).transpose(1, 2)
        difference = action.unsqueeze(-1) - action.unsqueeze(-2)
        unseen = torch.ones(n, n, dtype=torch.bool, device=action.device).triu(1)
        propagator = difference.masked_fill(unseen, float("-inf")).exp()
        layout = (b, n, self.n_fields, self.field_size)
        values = self.content(hidden_states).view(layout).transpose(1, 2)
        addresses = F.silu(self.address(hidden_states)).view(layout).transpose(1, 2)
        probes = F.silu(self.probe(hidden_states)).view(layout).transpose(1, 2)
        overlap = probes @ addresses.transpose(-1, -2) * self.field_size**-0.5
        recalled = self.standardise((overlap * propagator) @ values)
        recalled = recalled.transpose(1, 2).reshape(b, n, -1)
        return self.emit(recalled), None, past_key_values
