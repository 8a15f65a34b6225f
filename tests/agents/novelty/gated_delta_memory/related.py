"""We combine the two ways in which a fast-weight memory can forget. The delta rule removes
precisely what is stored under the incoming key, but cannot clear the rest of the memory; a decay
clears everything uniformly, but cannot edit. Our layer keeps both but ties them to a forget gate
that acts on values rather than on the whole state: each value channel has its own decay,
predicted from the token, so a head can clear some of the features it stores while it keeps the
others under the same key. Write strengths are likewise predicted for every value channel instead
of one scalar per head."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    """Delta rule with forget gates and write strengths for each value channel."""

    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.b_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.a_proj = nn.Linear(hidden_size, hidden_size, bias=True)
        self.a_log = nn.Parameter(torch.linspace(-3.0, 0.0, num_heads)[:, None])
        self.o_norm = nn.RMSNorm(self.head_dim, eps=1e-5)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        b, t, _ = hidden_states.shape
        q, k, v = (p(hidden_states).view(b, t, self.num_heads, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = F.normalize(F.silu(q), dim=-1), F.normalize(F.silu(k), dim=-1), F.silu(v)
        beta = self.b_proj(hidden_states).sigmoid().view_as(v)
        alpha = torch.exp(-self.a_log.exp() * F.softplus(self.a_proj(hidden_states)).view_as(v))
        state = v.new_zeros(b, self.num_heads, self.head_dim, self.head_dim)
        outs = []
        for i in range(t):
            state = state * alpha[:, i].unsqueeze(-2)
            old = torch.einsum("bhk,bhkv->bhv", k[:, i], state)
            delta = (v[:, i] - old) * beta[:, i]
            state = state + torch.einsum("bhk,bhv->bhkv", k[:, i], delta)
            outs.append(torch.einsum("bhk,bhkv->bhv", q[:, i], state))
        o = self.o_norm(torch.stack(outs, 1))
        return self.o_proj(o.flatten(2)), None, past_key_values
