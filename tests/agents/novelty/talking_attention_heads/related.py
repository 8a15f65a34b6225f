"""Heads of a memory layer work in isolation until the output projection, by which time all matching
has been decided. We let heads talk through routing instead of a fixed mixing matrix: every token
predicts a matrix of heads by heads, normalised by a softmax over the source heads, and the
attention output of each head is replaced by the mixture of all head outputs under this matrix.
Which heads cooperate thus changes from token to token, and a head can be switched off where it
is not needed, while the attention patterns themselves stay separate. The layer uses causal
softmax attention rather than DeltaNet's state.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.mix_proj = nn.Linear(hidden_size, num_heads * num_heads)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        with torch.no_grad():
            self.mix_proj.bias.copy_(3 * torch.eye(num_heads).flatten())

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
        q, k, v = (
            p(hidden_states).view(b, t, self.num_heads, -1).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        future = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1)
        o = logits.masked_fill(future, float("-inf")).softmax(-1) @ v
        mix = self.mix_proj(hidden_states).view(b, t, self.num_heads, self.num_heads).softmax(-1)
        o = torch.einsum("btgh,bhtd->btgd", mix, o)
        return self.o_proj(o.reshape(b, t, d)), None, past_key_values
