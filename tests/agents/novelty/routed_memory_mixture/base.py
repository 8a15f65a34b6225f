"""A single associative state per head mixes unrelated topics. We give every head four memory states
and a router: each token writes its key-value pair into the states in proportion to a softmax
over router logits, and reads from them with the same proportions. Tokens about one topic tend to
be routed alike, hence they share a state and do not overwrite those of other topics. A state
decays only as far as the router selects it, so inactive memories stay intact. The delta
correction of DeltaNet is replaced by this routing and decay.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads, self.states = num_heads, 4
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.router = nn.Linear(hidden_size, num_heads * self.states, bias=False)
        self.decay = nn.Parameter(torch.full((num_heads,), -2.0))
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        b, t, d = hidden_states.shape
        q, k, v = (p(hidden_states).view(b, t, self.num_heads, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        route = self.router(hidden_states).view(b, t, self.num_heads, self.states).softmax(-1)
        keep = 1 - route * torch.sigmoid(self.decay).view(-1, 1)
        memory = q.new_zeros(b, self.num_heads, self.states, q.shape[-1], v.shape[-1])
        outputs = []
        for i in range(t):
            write = torch.einsum("bhn,bhk,bhv->bhnkv", route[:, i], k[:, i], v[:, i])
            memory = memory * keep[:, i, :, :, None, None] + write
            outputs.append(torch.einsum("bhn,bhk,bhnkv->bhv", route[:, i], q[:, i], memory))
        return self.o_proj(torch.stack(outputs, 1).reshape(b, t, d)), None, past_key_values
