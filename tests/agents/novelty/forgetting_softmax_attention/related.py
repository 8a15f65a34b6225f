"""Softmax attention never forgets, and recurrent memories never retrieve exactly. We replace the
softmax by a stick-breaking process: going backwards from the query, every key takes a fraction
of the attention that is still left, given by the sigmoid of its logit, so the weight of a key is
its own sigmoid times the product of the complements of all keys after it. Recent matches
therefore shadow older ones, which yields a recency bias that depends on the pair and not on a
forget gate of single tokens, and replaces position embeddings. Queries and keys are normalised
by their root mean square before the product.
"""

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
        self.offset = nn.Parameter(torch.full((num_heads,), -1.0))
        self.q_norm = nn.RMSNorm(self.head_dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=1e-6)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

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
        q = self.q_norm(self.q_proj(hidden_states).view(b, t, self.num_heads, -1)).transpose(1, 2)
        k = self.k_norm(self.k_proj(hidden_states).view(b, t, self.num_heads, -1)).transpose(1, 2)
        v = self.v_proj(hidden_states).view(b, t, self.num_heads, -1).transpose(1, 2)
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5 + self.offset.view(-1, 1, 1)
        causal = torch.ones(t, t, device=q.device).tril()
        left = F.logsigmoid(-scores) * causal
        after = left.flip(-1).cumsum(-1).flip(-1) - left
        weights = (F.logsigmoid(scores) + after).exp() * causal
        o = weights @ v
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
