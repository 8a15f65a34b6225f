"""In DeltaNet a key describes one token, although the fact to be stored usually
concerns the phrase before it. We compute an exponential moving average of the hidden
states and derive queries and keys from the average while values come from the raw
token. The smoothing rate is not a learned constant: it is predicted for every
channel from the current token, so that the average is reset at boundaries and holds
its content through filler words. Matching is thus done between contexts whose extent
depends on the text. The attention itself is causal softmax attention, which benefits
most from smoother logits."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.rate_proj = nn.Linear(hidden_size, hidden_size)
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.constant_(self.rate_proj.bias, -1.0)

    def moving_average(self, x):
        rate = torch.sigmoid(self.rate_proj(x))
        average = torch.zeros_like(x[:, 0])
        averages = []
        for t in range(x.shape[1]):
            average = average + rate[:, t] * (x[:, t] - average)
            averages.append(average)
        return torch.stack(averages, dim=1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        context = self.moving_average(hidden_states)
        q, k, v = self.q_proj(context), self.k_proj(context), self.v_proj(hidden_states)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(o.transpose(1, 2).flatten(2)), None, past_key_values
