"""The key-value state of DeltaNet addresses its memory by raw inner products, so writes leak into
unrelated entries. We use a fixed number of memory slots for each head, updated by gated
replacement instead of a running mean: every slot has its own forget gate predicted from the
token, and what a slot forgets is exactly the weight with which it takes up the new key and
value. Slots that close their gate keep content verbatim over any distance, others track the
present. A query then attends to the slot keys with a softmax and returns the mixed slot values."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads, self.slots = num_heads, 8
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.forget = nn.Linear(hidden_size, num_heads * self.slots)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        with torch.no_grad():
            self.forget.bias.copy_(torch.linspace(0.0, 4.0, self.slots).repeat(num_heads))

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
        keep = torch.sigmoid(self.forget(hidden_states)).view(b, t, self.num_heads, self.slots, 1)
        slot_keys = k.new_zeros(b, self.num_heads, self.slots, k.shape[-1])
        slot_values = torch.zeros_like(slot_keys)
        outputs = []
        for i in range(t):
            slot_keys = keep[:, i] * slot_keys + (1 - keep[:, i]) * k[:, i].unsqueeze(-2)
            slot_values = keep[:, i] * slot_values + (1 - keep[:, i]) * v[:, i].unsqueeze(-2)
            read = torch.einsum("bhd,bhsd->bhs", q[:, i], slot_keys) * q.shape[-1] ** -0.5
            outputs.append(torch.einsum("bhs,bhsd->bhd", read.softmax(-1), slot_values))
        return self.o_proj(torch.stack(outputs, 1).reshape(b, t, d)), None, past_key_values
