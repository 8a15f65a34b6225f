"""Matrix memories spend most of their computation on inner products. We average values with weights that need
few: in every channel, a token has weight equal to the exponential of its key plus a learned bias that
depends on both positions through a low-rank product of query-side and key-side position features, and the
output is the weighted mean of values over the prefix. There is no monotone decay, so a channel may prefer
any pattern of distances up to periodic ones. A sigmoid receptance, predicted from the current token, gates
the mean before the output projection. Weights are normalised in the log domain so that exponentials never
overflow.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads, self.rank = num_heads, 8
        self.r_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.query_side = nn.Linear(self.rank, num_heads * self.rank, bias=False)
        self.key_side = nn.Linear(self.rank, num_heads * self.rank, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def position_features(self, length, device):
        steps = torch.arange(length, device=device)[:, None]
        angle = steps * 3.0 ** -torch.arange(self.rank // 2, device=device)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

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
        r, k, v = (p(hidden_states) for p in (self.r_proj, self.k_proj, self.v_proj))
        features = self.position_features(t, k.device)
        left = self.query_side(features).view(t, self.num_heads, self.rank)
        right = self.key_side(features).view(t, self.num_heads, self.rank)
        bias = torch.einsum("thr,shr->tsh", left, right)
        future = torch.ones(t, t, dtype=torch.bool, device=k.device).triu(1)
        bias = bias.masked_fill(future.unsqueeze(-1), float("-inf"))
        logits = bias[None, :, :, :, None] + k.view(b, 1, t, self.num_heads, -1)
        mean = torch.einsum("btshd,bshd->bthd", logits.softmax(2), v.view(b, t, self.num_heads, -1))
        return self.o_proj(torch.sigmoid(r) * mean.reshape(b, t, d)), None, past_key_values
