"""Induction, the completion of a pattern seen before, needs context in the key, because
a single token has many successors. A layer that binds key and value of single tokens
cannot tell them apart. We bind bigrams: the value of each token is written into a
delta-rule memory under the elementwise product of two projections, one of the token
itself and one of the token before it, and queries are formed from pairs in the same
way. The product makes a key specific to the conjunction, unlike a shifted key or a
sum, so the memory separates the successors of different pairs. The first token is
paired with a learned vector.
"""

import torch
import torch.nn.functional as F
from torch import nn

from kernels.delta_rule import delta_rule


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.start = nn.Parameter(torch.ones(2, hidden_size))
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.b_proj = nn.Linear(hidden_size, num_heads)
        self.o_norm = nn.RMSNorm(self.head_dim, eps=1e-5)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def conjunction(self, x, start):
        now, before = x.chunk(2, dim=-1)
        before = torch.cat([start.expand(len(x), 1, -1), before[:, :-1]], dim=1)
        return F.normalize((now * before).unflatten(-1, (self.num_heads, -1)), dim=-1)

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
        q = self.conjunction(self.q_proj(hidden_states), self.start[0])
        k = self.conjunction(self.k_proj(hidden_states), self.start[1])
        v = self.v_proj(hidden_states).view(b, t, self.num_heads, -1)
        beta = torch.sigmoid(self.b_proj(hidden_states))
        o, _ = delta_rule(q, k, v, beta, scale=1.0)
        o = self.o_norm(o)
        return self.o_proj(o.reshape(b, t, d)), None, past_key_values
