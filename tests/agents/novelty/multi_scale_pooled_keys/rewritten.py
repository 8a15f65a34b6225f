"""We endow attention with banded averaging operators. For each head a fixed stochastic band matrix, whose bandwidth
is a power of two, acts on the similarity matrix from the right and, transposed, on the attention distribution.
Because averaging commutes with linear projections, one may apply the operator after computing token-level
similarities instead of pooling any activations. The construction reveals multi-resolution attention as a sandwich
of stochastic matrices, a viewpoint that has not been explored before and that lends itself to theoretical
analysis. Compared with fast-weight memories the sandwich requires no recurrent state, no decay and no write
strength.
"""

import torch
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.fused = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def bands(self, n, device):
        i = torch.arange(n, device=device)
        lag = i[:, None] - i[None, :]
        widths = 2 ** torch.arange(self.num_heads, device=device)
        inside = ((lag >= 0) & (lag < widths[:, None, None])).float()
        return inside / inside.sum(-1, keepdim=True)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        q, k, v = rearrange(self.fused(hidden_states), "b t (n h d) -> n b h t d", n=3, h=self.num_heads)
        n = q.shape[2]
        band = self.bands(n, q.device)
        similarity = torch.einsum("bhtd,bhsd->bhts", q, k) * q.shape[-1] ** -0.5
        similarity = torch.einsum("bhts,hms->bhtm", similarity, band)
        similarity = similarity + torch.full((n, n), float("-inf"), device=q.device).triu(1)
        attention = torch.exp(similarity - torch.logsumexp(similarity, dim=-1, keepdim=True))
        o = torch.einsum("bhtm,hms,bhsd->bhtd", attention, band, v)
        return self.out(rearrange(o, "b h t d -> b t (h d)")), None, past_key_values
