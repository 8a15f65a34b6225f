"""Verbatim reproduction of the last few words and vague awareness of everything before are
different jobs, and a single fixed-size state does the former badly. This layer does them apart.
Ordinary attention looks back a couple of dozen positions and no further; beside it a kernel
estimator with cheap summed statistics covers the complete history. They use one set of projected
vectors. A sigmoid that depends upon the current word then says, head by head, which of the two
opinions counts more. Long inputs remain affordable since neither part is quadratic when
implemented in blocks."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.reach = 24
        self.q, self.k, self.v, self.o = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(4))
        self.preference = nn.Linear(hidden_size, num_heads)

    def feature(self, x):
        return F.elu(x) + 1.0

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        q, k, v = (rearrange(f(hidden_states), "b t (h d) -> b h t d", h=self.h) for f in (self.q, self.k, self.v))
        n = q.shape[-2]
        seen = torch.ones(n, n, device=q.device, dtype=torch.bool).tril()
        near = seen & torch.ones_like(seen).triu(1 - self.reach)
        exact = F.scaled_dot_product_attention(q, k, v, attn_mask=near)
        similarity = torch.einsum("bhtd,bhsd->bhts", self.feature(q), self.feature(k)).masked_fill(~seen, 0.0)
        vague = torch.einsum("bhts,bhsd->bhtd", F.normalize(similarity, p=1, dim=-1, eps=1e-6), v)
        preference = rearrange(torch.sigmoid(self.preference(hidden_states)), "b t h -> b h t 1")
        o = vague + preference * (exact - vague)
        return self.o(rearrange(o, "b h t d -> b t (h d)")), None, past_key_values
