"""Keys produced by a linear projection share a few large components, so all of them are
similar and the delta rule keeps overwriting along the same directions. Instead of
subtracting a running mean, we equalise the variance: a running second moment of the
keys seen so far is kept for each channel of a head, and keys and queries are divided
by its root, raised to a learned power per head, before they are normalised to unit
length. Channels that are always large lose influence and rare channels gain it,
collisions in the memory become rarer, and its effective capacity grows.
"""

import torch
import torch.nn.functional as F
from torch import nn

from kernels.delta_rule import delta_rule


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.b_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.power = nn.Parameter(torch.ones(num_heads))
        self.o_norm = nn.RMSNorm(hidden_size // num_heads, eps=1e-5)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

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
        q, k, v = (p(hidden_states).view(b, t, self.num_heads, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        count = torch.arange(1, t + 1, device=k.device).view(1, t, 1, 1)
        moment = (k.square().cumsum(1) + 0.1) / count
        scale = moment.pow(-0.5 * self.power.view(1, 1, -1, 1))
        q, k = F.normalize(q * scale, dim=-1), F.normalize(k * scale, dim=-1)
        beta = torch.sigmoid(self.b_proj(hidden_states))
        o, _ = delta_rule(q, k, F.silu(v), beta)
        o = self.o_norm(o)
        return self.o_proj(o.reshape(b, t, d)), None, past_key_values
