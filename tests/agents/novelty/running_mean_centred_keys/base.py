"""Keys produced by a linear projection share a large common component, so all of them are similar and the delta rule
keeps overwriting along one direction. We subtract from each key the running mean of all keys seen so far in its
head, and do the same to the queries with the mean of keys, before they are normalised to unit length. The
remaining vectors express how a token differs from the context, collisions in the memory become rarer, and its
effective capacity grows. The mean is causal and has no parameters except a learned strength for each head."""

import torch
import torch.nn.functional as F
from torch import nn

from kernels.delta_rule import delta_rule


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.b_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.strength = nn.Parameter(torch.ones(num_heads))
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
        mean = F.pad(k.cumsum(1)[:, :-1], (0, 0, 0, 0, 1, 0)) / count
        mean = mean * self.strength.view(1, 1, -1, 1)
        q, k = F.normalize(q - mean, dim=-1), F.normalize(k - mean, dim=-1)
        beta = torch.sigmoid(self.b_proj(hidden_states))
        o, _ = delta_rule(q, k, F.silu(v), beta)
        o = self.o_norm(o)
        return self.o_proj(o.reshape(b, t, d)), None, past_key_values
