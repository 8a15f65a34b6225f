"""Every head of DeltaNet forms its keys at the same granularity, a single token, although words, phrases and
sentences are all useful units to look up. We assign a scale to each head: its keys and values are causal moving
averages over one, two, four or eight tokens, doubling from head to head, while queries remain at token level.
Coarse heads store summaries and are robust to noise; fine heads keep exact bigrams. The averages come from
differences of cumulative sums and cost nothing. Attention over the pooled entries is an ordinary causal softmax."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def pool(self, x):
        total = F.pad(x.cumsum(1), (0, 0, 0, 0, 1, 0))
        end = torch.arange(1, x.shape[1] + 1, device=x.device)
        pooled = []
        for head in range(self.num_heads):
            start = (end - 2**head).clamp_min(0)
            width = (end - start).view(1, -1, 1)
            pooled.append((total[:, end, head] - total[:, start, head]) / width)
        return torch.stack(pooled, dim=1)

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
        o = F.scaled_dot_product_attention(q.transpose(1, 2), self.pool(k), self.pool(v), is_causal=True)
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
