"""We propose temporal super-resolution for editable memories. The token sequence is upsampled by a factor of two with
a learned interpolator that emits, for each virtual half step, its own address, content and strength; an ordinary
editing memory is then run at the higher rate, and its answers are decimated to the original rate. Upsampling
raises the computational depth for each token at constant state size, which is known to be decisive for tracking
tasks. Since any efficient kernel for editing memories may run at the higher rate, the method is immediately
practical, and it introduces no new recurrence.
"""

import torch
from einops import rearrange
from torch import nn

from kernels.delta_rule import delta_rule


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Linear(hidden_size, hidden_size, bias=False)
        self.interpolator = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.strength = nn.Linear(hidden_size, 2 * num_heads)
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
        keys, values = self.interpolator(hidden_states).chunk(2, dim=-1)
        k, v = (rearrange(x, "b t (r h d) -> b (t r) h d", r=2, h=self.num_heads) for x in (keys, values))
        beta = rearrange(1 + torch.tanh(self.strength(hidden_states) / 2), "b t (r h) -> b (t r) h", r=2)
        q = rearrange(self.probe(hidden_states), "b t (h d) -> b t h d", h=self.num_heads)
        q = q.repeat_interleave(2, dim=1)
        q, k = (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (q, k))
        o, _ = delta_rule(q, k, v, beta, scale=1.0)
        o = o[:, 1::2]
        o = o * (o.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (1 + self.gain)
        return self.out(rearrange(o, "b t h d -> b t (h d)")), None, past_key_values
