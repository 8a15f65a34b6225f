"""We analyse a two-step linear multistep memory. The next memory is an affine extrapolation of the two
preceding memories plus a residual injection along the present address; the extrapolation coefficient is
learned for each head. Multistep schemes are well understood in numerical integration, but no fast-weight
layer has been derived from one. Only memories at consecutive times are carried, no auxiliary optimiser
state is needed, and the order of the scheme controls how much past motion is continued. The injection
strength is a logistic function of the token, halved for stability, and addresses as well as probes have
unit norm.
"""

import torch
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.fused = nn.Linear(hidden_size, 3 * hidden_size + num_heads, bias=False)
        self.inject_bias = nn.Parameter(torch.zeros(num_heads))
        self.extrapolate = nn.Parameter(torch.zeros(1, num_heads, 1, 1))
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
        d = hidden_states.shape[-1]
        *qkv, inject = self.fused(hidden_states).split([d, d, d, self.num_heads], dim=-1)
        q, k, v = (rearrange(x, "b t (h d) -> t b h d 1", h=self.num_heads) for x in qkv)
        q, k = (x / x.norm(dim=-2, keepdim=True).clamp_min(1e-12) for x in (q, k))
        inject = 0.25 * (1 + torch.tanh((inject + self.inject_bias) / 2))
        inject = rearrange(inject, "b t h -> t b h 1 1")
        ahead = 0.5 + 0.5 * torch.tanh(self.extrapolate / 2)
        before = now = torch.zeros_like(v[0] @ k[0].mT)
        reads = []
        for i in range(len(q)):
            residual = v[i] - now @ k[i]
            after = (1 + ahead) * now - ahead * before + inject[i] * residual @ k[i].mT
            before, now = now, after
            reads.append(now @ q[i])
        return self.out(rearrange(torch.stack(reads), "t b h d 1 -> b t (h d)")), None, past_key_values
