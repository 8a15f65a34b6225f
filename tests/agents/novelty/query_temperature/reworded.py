"""Asking for a name is different from asking for a mood: the former has one right
answer, the latter is spread over a page. We therefore decouple what is asked from
how picky the asker is. Directions alone, stripped of length, determine similarity;
pickiness is an extra output of the asking word, kept above zero by an exponential
and raised slowly as more candidates accumulate, to offset crowding. Everything
downstream is conventional normalised weighting. With this freedom heads can turn
into copy devices or averaging devices from one word to the next, without associative
matrices."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.picky = nn.Linear(hidden_size, num_heads)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.constant_(self.picky.bias, 1.0)

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
        crowd = torch.log(torch.arange(n, device=q.device) + 2.0)
        picky = torch.exp(self.picky(hidden_states).clamp_max(5)) * crowd[:, None]
        q = F.normalize(q, dim=-1) * picky.unsqueeze(-1)
        k = F.normalize(k, dim=-1)
        visible = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=1.0)
        return self.out(rearrange(o, "b h t d -> b t (h d)")), None, past_key_values
