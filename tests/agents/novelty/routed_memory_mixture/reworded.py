"""Imagine a clerk with several notebooks who decides, for each remark, how to divide it between them, and who
consults them by the same division when answering. Remarks on different subjects end up in different notebooks and
no longer smudge each other. Ink fades merely in those notebooks being written to, hence a neglected one is as
legible as on the day it was left. Our layer implements this with a handful of matrices for each head and a small
classifier on the current word, in lieu of subtracting old content at the moment of writing."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.h, self.books = num_heads, 6
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.divide = nn.Linear(hidden_size, num_heads * self.books, bias=False)
        self.fading = nn.Parameter(torch.full((num_heads, 1), -2.0))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n = hidden_states.shape[1]
        q, k, v = rearrange(self.qkv(hidden_states), "b t (n h d) -> n b h t d", n=3, h=self.h)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        share = rearrange(self.divide(hidden_states), "b t (h m) -> b h m t", m=self.books).softmax(2)
        ink = torch.log1p(-share * self.fading.sigmoid().unsqueeze(-1)).cumsum(-1)
        future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        legible = (ink[..., :, None] - ink[..., None, :]).masked_fill(future, float("-inf")).exp()
        overlap = torch.einsum("bhmt,bhms,bhmts->bhts", share, share, legible)
        o = (torch.einsum("bhtd,bhsd->bhts", q, k) * overlap) @ v
        return self.out(rearrange(o, "b h t d -> b t (h d)")), None, past_key_values
