"""Matrix memories spend most of their computation on inner products. We average values with weights
that need none: in every channel, a token has weight equal to the exponential of its key,
discounted by a learned decay for each step of distance, and the output is the weighted mean of
values over the prefix. The current token receives an additional learned bonus in its logit. A
sigmoid receptance, predicted from the current token, gates the mean before the output
projection. The recurrence needs a numerator and a denominator per channel, rescaled by a running
maximum so that exponentials never overflow."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.r_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.decay = nn.Parameter(torch.linspace(-4.0, 1.0, hidden_size))
        self.bonus = nn.Parameter(torch.full((hidden_size,), 0.3))
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
        r, k, v = (p(hidden_states) for p in (self.r_proj, self.k_proj, self.v_proj))
        fade = torch.exp(self.decay)
        top = torch.zeros_like(v[:, 0])
        bottom = torch.zeros_like(top)
        peak = torch.full_like(top, -1e30)
        outputs = []
        for t in range(v.shape[1]):
            now = k[:, t] + self.bonus
            highest = torch.maximum(peak, now)
            old, new = torch.exp(peak - highest), torch.exp(now - highest)
            outputs.append((old * top + new * v[:, t]) / (old * bottom + new))
            highest = torch.maximum(peak - fade, k[:, t])
            old, new = torch.exp(peak - fade - highest), torch.exp(k[:, t] - highest)
            top, bottom, peak = old * top + new * v[:, t], old * bottom + new, highest
        o = torch.sigmoid(r) * torch.stack(outputs, dim=1)
        return self.o_proj(o), None, past_key_values
