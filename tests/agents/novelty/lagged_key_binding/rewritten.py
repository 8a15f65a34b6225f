"""We propose delayed commitment memory. When a token arrives it does not commit anything about
itself; it merely leaves a pending address. The commitment takes place with the arrival of the
following token, which provides content and strength for the pending address, after which it
leaves a pending address of its own. Delaying commitment permits the memory to see the outcome of
a situation before storing it, reminiscent of eligibility traces in reinforcement learning.
Memory content is revised in proportion to the residual under the pending address. The mechanism
needs a single additional register and no further parameters.
"""

import torch
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.fused = nn.Linear(hidden_size, 3 * hidden_size + num_heads, bias=False)
        self.strength_bias = nn.Parameter(torch.zeros(num_heads, 1))
        self.gain = nn.Parameter(torch.zeros(hidden_size // num_heads))
        self.out = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size**0.5)

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
        *qkv, strength = self.fused(hidden_states).split([d, d, d, self.num_heads], dim=-1)
        q, k, v = (rearrange(x, "b t (h d) -> t b h d", h=self.num_heads) for x in qkv)
        q, k = (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12) for x in (q, k))
        strength = strength.permute(1, 0, 2).unsqueeze(-1) + self.strength_bias
        strength = 0.5 + 0.5 * torch.tanh(strength / 2)
        pending = torch.zeros_like(k[0])
        memory = torch.zeros_like(v[0].unsqueeze(-1) * pending.unsqueeze(-2))
        committed = []
        for t in range(len(q)):
            residual = v[t] - (memory @ pending.unsqueeze(-1)).squeeze(-1)
            memory = memory + (strength[t] * residual).unsqueeze(-1) @ pending.unsqueeze(-2)
            pending = k[t]
            committed.append((memory @ q[t].unsqueeze(-1)).squeeze(-1))
        o = torch.stack(committed)
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        o = rearrange(o * (1 + self.gain), "t b h d -> b t (h d)")
        return o @ self.out, None, past_key_values
