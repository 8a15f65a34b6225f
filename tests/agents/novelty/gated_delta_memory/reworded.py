"""Editing and erasing are complementary. A layer that overwrites single entries leaves clutter behind when
the subject of a document changes, whereas one that fades uniformly loses facts it should have kept. Here
every token first dims each head's associative table by a learned factor and then corrects the one entry
that its key points to, by an amount it also chooses. Time constants are initialised on a spread so that
some tables dim quickly from the first training step while others hardly do. As addresses are normalised, a
correction never overshoots and training is stable without further tricks."""

import torch
import torch.nn.functional as F
from torch import nn


def unit(x):
    return F.normalize(F.elu(x) + 1.0, dim=-1)


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.qk = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.val = nn.Linear(hidden_size, hidden_size, bias=False)
        self.strength = nn.Linear(hidden_size, num_heads, bias=False)
        self.dim_step = nn.Linear(hidden_size, num_heads)
        self.rate = nn.Parameter(torch.linspace(-3.0, 0.0, num_heads))
        self.scale = nn.RMSNorm(hidden_size // num_heads, eps=1e-5)
        self.mix = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        heads = (self.h, hidden_states.shape[-1] // self.h)
        q, k = (unit(x.unflatten(-1, heads)) for x in self.qk(hidden_states).chunk(2, -1))
        v = F.silu(self.val(hidden_states)).unflatten(-1, heads)
        strength = torch.sigmoid(self.strength(hidden_states))[..., None]
        dim = (-self.rate.exp() * F.softplus(self.dim_step(hidden_states))).exp()[..., None, None]
        table, out = 0.0, []
        for qt, kt, vt, st, dt in zip(*(x.unbind(1) for x in (q, k, v, strength, dim)), strict=True):
            table = dt * table + torch.zeros_like(kt[..., None] * vt[..., None, :])
            error = vt - (kt[..., None, :] @ table)[..., 0, :]
            table = table + kt[..., None] * (st * error)[..., None, :]
            out.append((qt[..., None, :] @ table)[..., 0, :])
        return self.mix(self.scale(torch.stack(out, dim=1)).flatten(2)), None, past_key_values
