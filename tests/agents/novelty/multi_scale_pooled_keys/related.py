"""Every head of DeltaNet forms its keys at the same granularity, a single token, although words, phrases and
sentences are all useful units to look up. We compute causal moving averages of keys and values over one,
two, four and eight tokens in every head, and let each token choose its scale: a softmax predicted from the
token mixes the four averages before they are stored, so granularity follows the text instead of being
assigned to heads. Punctuation may store a sentence summary while a name stores itself. Queries remain at
token level, and attention over the pooled entries is an ordinary causal softmax."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.scales = 4
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.scale_proj = nn.Linear(hidden_size, num_heads * self.scales)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def pool(self, x, choice):
        total = F.pad(x.cumsum(1), (0, 0, 0, 0, 1, 0))
        end = torch.arange(1, x.shape[1] + 1, device=x.device)
        pooled = 0.0
        for scale in range(self.scales):
            start = (end - 2**scale).clamp_min(0)
            average = (total[:, end] - total[:, start]) / (end - start).view(1, -1, 1, 1)
            pooled = pooled + choice[..., scale].unsqueeze(-1) * average
        return pooled.transpose(1, 2)

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
        choice = self.scale_proj(hidden_states).view(b, t, self.num_heads, self.scales).softmax(-1)
        k, v = self.pool(k, choice), self.pool(v, choice)
        o = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
