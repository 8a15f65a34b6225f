"""What a memory returns is not always what the layer should emit: after a poor match the read is
noise. We give a delta-rule layer an output gate. The read of every head is normalised by its
root mean square and multiplied, channel by channel, with a swish of a projection of the current
token before the output projection. Normalisation makes the gate independent of how full the
memory is, and the multiplicative path lets the token suppress channels that are irrelevant to
it. The gate has full width and no bias, and everything else is kept as in DeltaNet."""

import torch
import torch.nn.functional as F
from torch import nn

from kernels.delta_rule import delta_rule


class DeltaNet(nn.Module):
    """Delta rule with a gated output."""

    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.b_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.g_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm_weight = nn.Parameter(torch.ones(self.head_dim))
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
        b, t, d = hidden_states.shape
        q = F.silu(self.q_proj(hidden_states)).view(b, t, self.num_heads, self.head_dim)
        k = F.silu(self.k_proj(hidden_states)).view(b, t, self.num_heads, self.head_dim)
        v = F.silu(self.v_proj(hidden_states)).view(b, t, self.num_heads, self.head_dim)
        beta = torch.sigmoid(self.b_proj(hidden_states))
        o, _ = delta_rule(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, beta)
        o = o * torch.rsqrt(o.pow(2).mean(-1, keepdim=True) + 1e-5) * self.norm_weight
        gate = F.silu(self.g_proj(hidden_states))
        return self.o_proj(o.reshape(b, t, d) * gate), None, past_key_values
