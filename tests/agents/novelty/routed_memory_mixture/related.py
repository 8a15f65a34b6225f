"""A single associative state per head mixes unrelated topics. We give every head four memory states and two routers:
a write router with sparse choice, which sends the key-value pair of a token only to the state with the largest
probability, scaled by that probability, and an independent read router, which mixes all states with a softmax.
Reading can therefore combine topics that are stored apart, while states that are not selected for writing are left
untouched, neither decayed nor written. The selected state decays. The delta correction of DeltaNet is replaced by
this routing and decay."""

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
        self.write_router = nn.Linear(hidden_size, num_heads * self.states, bias=False)
        self.read_router = nn.Linear(hidden_size, num_heads * self.states, bias=False)
        self.decay = nn.Parameter(torch.full((num_heads,), -2.0))
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        b, t, d = hidden_states.shape
        q, k, v = (p(hidden_states).view(b, t, self.num_heads, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        probability = self.write_router(hidden_states).view(b, t, self.num_heads, self.states).softmax(-1)
        chosen = F.one_hot(probability.argmax(-1), self.states).to(probability.dtype)
        write = probability * chosen
        read = self.read_router(hidden_states).view(b, t, self.num_heads, self.states).softmax(-1)
        keep = 1 - chosen * torch.sigmoid(self.decay).view(-1, 1)
        memory = q.new_zeros(b, self.num_heads, self.states, q.shape[-1], v.shape[-1])
        outputs = []
        for i in range(t):
            memory = memory * keep[:, i, :, :, None, None]
            memory = memory + torch.einsum("bhn,bhk,bhv->bhnkv", write[:, i], k[:, i], v[:, i])
            outputs.append(torch.einsum("bhn,bhk,bhnkv->bhv", read[:, i], q[:, i], memory))
        return self.o_proj(torch.stack(outputs, 1).reshape(b, t, d)), None, past_key_values
