"""We present fixed-point inspired attention with a truncated iteration. The causal operator of a layer is a
matrix over positions built from discounted similarities; we evaluate it on cues, obtain responses, turn
responses back into cues by a head-wise linear map, and evaluate the operator once more on refreshed cues.
Truncating after two evaluations balances expressiveness with cost, and a damping coefficient accounts for
the first evaluation. The operator view permits parallel training, as all positions iterate simultaneously.
Iterated operators are novel among linear-time token mixers, which up to now have been single-pass.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        head = hidden_size // num_heads
        self.weights = nn.Parameter(torch.randn(3, num_heads, hidden_size, head) / hidden_size**0.5)
        self.refresh = nn.Parameter(torch.randn(num_heads * head, head) / head**0.5)
        self.damping = nn.Parameter(torch.full((num_heads,), -0.5))
        self.discount = nn.Parameter(torch.full((num_heads,), 4.0))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        cue, key, response = torch.einsum("btd,nhde->nbhte", hidden_states, self.weights)
        cue = cue * cue.square().sum(-1, keepdim=True).clamp_min(1e-24).rsqrt()
        key = key * key.square().sum(-1, keepdim=True).clamp_min(1e-24).rsqrt()
        n = cue.shape[2]
        clock = torch.arange(n, device=cue.device)
        lag = clock[:, None] - clock[None, :]
        log_keep = -F.softplus(-self.discount)
        exponent = torch.where(lag >= 0, lag * log_keep[:, None, None], float("-inf"))
        discount = torch.exp(exponent)
        first = (cue @ key.mT * discount) @ response
        refreshed = cue + torch.matmul(first, self.refresh.unflatten(0, (self.num_heads, -1)))
        length = torch.sqrt(torch.einsum("bhtd,bhtd->bht", refreshed, refreshed))
        refreshed = refreshed / (length + 1e-3).unsqueeze(-1)
        second = (refreshed @ key.mT * discount) @ response
        o = second + first + self.damping[:, None, None] * first
        return self.out(o.transpose(1, 2).flatten(2)), None, past_key_values
