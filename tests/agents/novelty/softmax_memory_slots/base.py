"""The key-value state of DeltaNet addresses its memory by raw inner products, so writes leak into
unrelated entries. We use a fixed number of memory slots for each head. Every token distributes
its key and value over the slots with a softmax of a learned write projection; the slots
accumulate weighted keys and values and are divided by the weight that they have received. A
query then attends to the slot keys with a softmax and returns the mixed slot values. The result
is attention over a bounded set of prototypes, built online in one pass."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads, self.slots = num_heads, 8
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.write = nn.Linear(hidden_size, num_heads * self.slots)
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
        write = self.write(hidden_states).view(b, t, self.num_heads, self.slots).softmax(-1)
        weight = write.cumsum(1).unsqueeze(-1) + 1e-6
        slot_keys = (write.unsqueeze(-1) * k.unsqueeze(-2)).cumsum(1) / weight
        slot_values = (write.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(1) / weight
        read = torch.einsum("bthd,bthsd->bths", q, slot_keys) * q.shape[-1] ** -0.5
        o = torch.einsum("bths,bthsd->bthd", read.softmax(-1), slot_values)
        return self.o_proj(o.reshape(b, t, d)), None, past_key_values
