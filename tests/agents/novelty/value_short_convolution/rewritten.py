"""A finite-impulse-response write head is attached to a running kernel regressor. While previous regressors predict
with instantaneous targets, ours predicts with targets that have passed an adaptive tapped delay line, an idea
borrowed from echo cancellation. The delay line is local to every channel, and the regressor's sufficient
statistics, a numerator matrix and a denominator vector, are accumulated along time by prefix sums, so that
inference has constant memory. This breaks with the delta-rule tradition, in which targets are corrected after
being stored; here they are enriched before being stored. Inputs of the regressor remain instantaneous, which
preserves its resolution."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.fused = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        taps = 0.1 * torch.randn(4, hidden_size)
        taps[0] += 1.0
        self.taps = nn.Parameter(taps)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def delay(self, x, steps):
        return F.pad(x, (0, 0, steps, 0))[:, : x.shape[1]]

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        q, k, raw = self.fused(hidden_states).chunk(3, -1)
        v = sum(self.delay(raw, j) * tap for j, tap in enumerate(self.taps))
        q = torch.where(q > 0, q + 1, q.clamp_max(0).exp())
        k = torch.where(k > 0, k + 1, k.clamp_max(0).exp())
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in (q, k, v))
        numerator = torch.einsum("bthk,bthv->bthkv", k, v).cumsum(1)
        denominator = k.cumsum(1)
        top = torch.einsum("bthk,bthkv->bthv", q, numerator)
        bottom = (q * denominator).sum(-1, keepdim=True).clamp_min(1e-6)
        return self.o_proj((top / bottom).flatten(2)), None, past_key_values
