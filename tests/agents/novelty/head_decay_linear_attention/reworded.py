"""A recurrent matrix that only ever accumulates outer products saturates: after a few
hundred words everything it returns is an average of everything it saw. Our remedy
gives each head a leak. The incoming word decides, through a tiny projection, what
fraction of that head's matrix survives the step; the error-correcting write of the
reference layer is omitted because the leak already keeps the matrix bounded. One
number per head is enough for some heads to act as scratch pads and others as
archives. Because leaks multiply along time, their logarithms can be summed once and
the whole layer evaluated as a masked product."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.heads = num_heads
        self.width = hidden_size // num_heads
        self.to_qkv = nn.ModuleList([nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(3)])
        self.to_leak = nn.Linear(hidden_size, num_heads)
        self.post = nn.LayerNorm(self.width)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def split(self, x):
        return x.unflatten(-1, (self.heads, self.width)).movedim(2, 1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        q, k, v = (self.split(f(hidden_states)) for f in self.to_qkv)
        q, k = F.silu(q) / self.width**0.5, F.silu(k)
        steps = hidden_states.shape[1]
        leak = F.logsigmoid(self.to_leak(hidden_states)).transpose(1, 2) / 16.0
        clock = leak.cumsum(-1)
        gaps = clock[..., :, None] - clock[..., None, :]
        causal = torch.tril(torch.ones(steps, steps, device=gaps.device)).bool()
        kernel = torch.where(causal, gaps, torch.full_like(gaps, float("-inf"))).exp()
        read = torch.einsum("bhts,bhsd->bhtd", torch.einsum("bhtd,bhsd->bhts", q, k) * kernel, v)
        return self.out(self.post(read).movedim(1, 2).flatten(2)), None, past_key_values
