"""A committee whose members vote without discussion wastes what they know. In multi-head lookup, no
head learns what another found until the votes have been cast. Two tiny square tables fix that:
the first blends raw similarities between heads, the second blends the resulting distributions.
Either is a trained table with one row and column for each head, close to doing nothing at the
outset. Patterns may hence be borrowed, sharpened by agreement or subtracted. As this is defined
on explicit pairwise scores, we forgo a compressed recurrent store."""

import torch
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.before = nn.Parameter(torch.eye(num_heads) + 0.02 * torch.randn(num_heads, num_heads))
        self.after = nn.Parameter(torch.eye(num_heads) + 0.02 * torch.randn(num_heads, num_heads))
        self.scale = (hidden_size // num_heads) ** -0.5
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n = hidden_states.shape[1]
        q, k, v = rearrange(self.qkv(hidden_states), "b t (n h d) -> n b t h d", n=3, h=self.h)
        similarity = torch.einsum("bthd,bshd->btsh", q * self.scale, k)
        similarity = 10 * torch.tanh(similarity / 10) @ self.before
        later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1).unsqueeze(-1)
        distribution = similarity.masked_fill(later, float("-inf")).softmax(dim=2) @ self.after
        o = torch.einsum("btsh,bshd->bthd", distribution, v)
        return self.out(rearrange(o, "b t h d -> b t (h d)")), None, past_key_values
