"""Strictly lagged kernels with diagonal correction form a new family of sequence operators. The off-diagonal part of
the operator is a separable kernel with exponential lags that are resolved by feature; the diagonal part is an
independent bilinear form with its own metric. Splitting an operator in that way is standard in numerical analysis,
where diagonal corrections repair quadrature errors at singular points, and we find that it repairs token mixing as
well. We construct the whole operator densely from lag powers, hence no recurrence is unrolled, and both parts
share their projections. Neither error feedback nor gating is involved.
"""

import torch
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.weights = nn.Parameter(torch.randn(4, hidden_size, hidden_size) / hidden_size**0.5)
        self.log_rate = nn.Parameter(torch.linspace(-4.0, 0.0, hidden_size).view(num_heads, -1))
        self.metric = nn.Parameter(torch.full((num_heads, hidden_size // num_heads), -0.5))
        self.affine = nn.Parameter(torch.stack([torch.zeros(hidden_size // num_heads)] * 2))

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n = hidden_states.shape[1]
        x = torch.einsum("btd,ned->nbte", hidden_states, self.weights[:3])
        q, k, v = rearrange(x, "n b t (h d) -> n b h t d", h=self.num_heads)
        i = torch.arange(n, device=q.device)
        lag = (i[:, None] - i[None, :] - 1)[None, :, :, None]
        kernel = torch.exp(-lag.clamp_min(0) * self.log_rate.exp()[:, None, None, :]) * (lag >= 0)
        operator = torch.einsum("bhtd,bhsd,htsd->bhts", q, k, kernel)
        diagonal = (q * k * (1 + self.metric).unsqueeze(1)).sum(-1)
        operator = operator + torch.diag_embed(diagonal)
        o = operator @ v / q.shape[-1] ** 0.5
        o = o - o.mean(-1, keepdim=True)
        o = o * (o.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        o = o * (1 + self.affine[0]) + self.affine[1]
        return rearrange(o, "b h t d -> b t (h d)") @ self.weights[3].T, None, past_key_values
