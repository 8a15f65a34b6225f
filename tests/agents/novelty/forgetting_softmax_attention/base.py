"""Softmax attention never forgets, and recurrent memories never retrieve exactly. We
bring the forget gate of recurrent layers into softmax attention: every token emits
one forget logit per head, and the logits of attention are lowered by the accumulated
log forget factors between key and query. A closed gate therefore cuts off everything
before it, as resetting a state would do, and a slightly open one gives a
data-dependent recency bias that replaces position embeddings. Queries and keys are
normalised by their root mean square before the product, which keeps content and
recency on comparable scales.
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
        self.f_proj = nn.Linear(hidden_size, num_heads)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=1e-6)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.constant_(self.f_proj.bias, 2.0)

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
        log_forget = F.logsigmoid(self.f_proj(hidden_states)).cumsum(1).transpose(1, 2)
        bias = log_forget.unsqueeze(-1) - log_forget.unsqueeze(-2)
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5 + bias
        future = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1)
        o = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
