"""Bi-exponential impulse responses are ubiquitous in nature, from synaptic currents to volcanic cooling. We lift them
into associative memory: the impulse response of our memory is a token-controlled convex combination of two
exponentials, realised by a stacked recurrent register with a fast and a slow plane. Stacking the planes along an
extra axis means that a single recurrence serves both, and the combination weights are simply the two-class softmax
of a planar logit. We conjecture that bi-exponential memory strictly generalises the mono-exponential retention of
earlier linear recurrent layers and, unlike delta-rule memories, it needs no subtraction of stored content.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.qkvo = nn.Parameter(torch.randn(4, hidden_size, hidden_size) / hidden_size**0.5)
        self.plane_logit = nn.Linear(hidden_size, num_heads)
        self.planes = nn.Parameter(torch.tensor([[0.5], [4.0]]).repeat(1, num_heads))

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        b, t, d = hidden_states.shape
        x = torch.einsum("btd,nde->nbte", hidden_states, self.qkvo[:3])
        q, k, v = x.reshape(3, b, t, self.num_heads, -1)
        q = q / q.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        k = k / k.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        logit = self.plane_logit(hidden_states)
        blend = torch.stack([logit, torch.zeros_like(logit)], dim=-1).softmax(-1)
        keep = (1 / (1 + torch.exp(-self.planes))).T[None, :, :, None, None]
        register = v.new_zeros(b, self.num_heads, 2, q.shape[-1], q.shape[-1])
        y = []
        for i in range(t):
            register = register * keep + (k[:, i, :, :, None] * v[:, i, :, None, :]).unsqueeze(2)
            plane = (blend[:, i, :, :, None, None] * register).sum(2)
            y.append(torch.matmul(q[:, i, :, None, :], plane).squeeze(2))
        return torch.stack(y, dim=1).view(b, t, d) @ self.qkvo[3], None, past_key_values
