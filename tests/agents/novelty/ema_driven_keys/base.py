"""In DeltaNet a key describes one token, although the fact to be stored usually
concerns the phrase before it. We compute an exponential moving average of the hidden
states, with a learned smoothing rate for every channel, and derive queries and keys
from the average while values still come from the raw token. Matching is thus done
between contexts of adaptive length, some channels averaging over a few tokens and
others over hundreds, and retrieval returns crisp content. The attention itself is
causal softmax attention, which benefits most from smoother logits."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.smoothing = nn.Parameter(torch.linspace(-3.0, 3.0, hidden_size))
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def moving_average(self, x):
        rate = torch.sigmoid(self.smoothing)
        average = torch.zeros_like(x[:, 0])
        averages = []
        for t in range(x.shape[1]):
            average = average + rate * (x[:, t] - average)
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
