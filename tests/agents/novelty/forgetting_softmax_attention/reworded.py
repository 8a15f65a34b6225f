"""Exact lookup and graceful ageing need not exclude each other. In this layer each word
sets, head by head, the price of looking back across it; the score of a past word is
its similarity minus the total price of all words in between. Cheap passages leave
ordinary attention, an expensive word acts like a page break that hides what came
earlier. Relative distance is thereby learned from content, so we omit other
encodings of order. Vectors are brought to standard length prior to comparison, which
stops prices from being drowned by large similarities.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.price = nn.Linear(hidden_size, num_heads)
        self.q_scale = nn.Parameter(torch.ones(hidden_size // num_heads))
        self.k_scale = nn.Parameter(torch.ones(hidden_size // num_heads))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.constant_(self.price.bias, -3.0)

    def standard(self, x, scale):
        return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * scale

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        q, k, v = rearrange(self.qkv(hidden_states), "b t (n h d) -> n b h t d", n=3, h=self.h)
        q, k = self.standard(q, self.q_scale), self.standard(k, self.k_scale)
        paid = F.softplus(self.price(hidden_states)).square().cumsum(1).mT
        total = paid[..., None] - paid[..., None, :]
        n = paid.shape[-1]
        visible = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        mask = torch.where(visible, -total, torch.full_like(total, float("-inf")))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(rearrange(o, "b h t d -> b t (h d)")), None, past_key_values
