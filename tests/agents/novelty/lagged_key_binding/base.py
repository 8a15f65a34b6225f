"""Induction, the completion of a pattern seen before, needs the value that followed a key and not
the value of the key itself. A layer that binds key and value of the same token must leave the
shift to another layer. We bind across tokens: the value of each token is written into a
delta-rule memory under the key of the token before it, while queries come from the current
token. Asking with a token thus returns what followed its last occurrence, in one layer. The
first token has no predecessor and writes nothing. Nothing else changes and no parameters are
added.
"""

import torch
import torch.nn.functional as F
from torch import nn

from kernels.delta_rule import delta_rule


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.b_proj = nn.Linear(hidden_size, num_heads)
        self.o_norm = nn.RMSNorm(self.head_dim, eps=1e-5)
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
        q = F.normalize(self.q_proj(hidden_states).view(b, t, self.num_heads, -1), dim=-1)
        k = F.normalize(self.k_proj(hidden_states).view(b, t, self.num_heads, -1), dim=-1)
        v = self.v_proj(hidden_states).view(b, t, self.num_heads, -1)
        k = torch.cat([torch.zeros_like(k[:, :1]), k[:, :-1]], dim=1)
        beta = torch.sigmoid(self.b_proj(hidden_states))
        o, _ = delta_rule(q, k, v, beta, scale=1.0)
        o = self.o_norm(o)
        return self.o_proj(o.reshape(b, t, d)), None, past_key_values
