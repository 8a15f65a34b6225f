"""We introduce causal contrast operators for address spaces. A strictly lower triangular averaging operator acts over
time; its output, weighted for each address space, is contrasted with instantaneous vectors of either role.
Contrasting is performed at the level of hidden states, since the operator commutes with the address projection,
such that the projection sees background and foreground side by side. Vectors are normalised on the sphere and
drive a memory whose transition is a product of partial projections. Contrast is ubiquitous in sensory systems and,
to our knowledge, has not yet been proposed for memory addressing.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.roles = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.address = nn.Linear(hidden_size, hidden_size, bias=False)
        self.rate = nn.Parameter(torch.randn(hidden_size, num_heads) / hidden_size**0.5)
        self.contrast = nn.Parameter(torch.zeros(num_heads, 1))
        self.gain = nn.Parameter(torch.zeros(hidden_size // num_heads))
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
        n = hidden_states.shape[1]
        split = (self.num_heads, hidden_states.shape[-1] // self.num_heads)
        past = torch.ones(n, n, device=hidden_states.device).tril(-1)
        past = past / torch.arange(1, n + 1, device=past.device)[:, None]
        background = self.address(torch.matmul(past, hidden_states)).unflatten(-1, split) * (1 + self.contrast)
        q, v = self.roles(hidden_states).unflatten(-1, (2, *split)).unbind(2)
        k = self.address(hidden_states).unflatten(-1, split) - background
        q = q - background
        q, k = (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (q, k))
        v = v / (1 + torch.exp(-v))
        rate = torch.sigmoid(hidden_states @ self.rate)
        memory, reads = torch.zeros_like(v[:, 0, :, :, None] * k[:, 0, :, None, :]), []
        for t in range(n):
            wrong = (memory * k[:, t, :, None, :]).sum(-1) - v[:, t]
            memory = memory - (rate[:, t, :, None] * wrong).unsqueeze(-1) * k[:, t].unsqueeze(-2)
            reads.append((memory * q[:, t, :, None, :]).sum(-1))
        o = torch.stack(reads, dim=1) / split[1] ** 0.5
        o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * (1 + self.gain)
        return self.out(o.flatten(2)), None, past_key_values
