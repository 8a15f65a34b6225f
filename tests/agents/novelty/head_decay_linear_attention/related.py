"""DeltaNet frees space in its memory only when a new key collides with an old one, so
stale associations stay forever. We use additive linear attention whose state is
multiplied at every step by forget factors predicted from the token, one for every
key channel instead of one for a whole head. Within a head, some key directions can
therefore store long-lived facts while others hold short-lived syntax, and a token
may flush only the directions that it wants to reuse. A low-rank projection predicts
the factors so that the finer decay costs few parameters, and the state is updated by
a recurrent scan.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    """Linear attention with a data-dependent decay for each key channel."""

    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.decay_down = nn.Linear(hidden_size, 8, bias=False)
        self.decay_up = nn.Linear(8, hidden_size)
        self.norm = nn.LayerNorm(self.head_dim)
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
        batch, length, _ = hidden_states.shape
        shape = (batch, length, self.num_heads, self.head_dim)
        q = F.silu(self.q_proj(hidden_states)).view(shape)
        k = F.silu(self.k_proj(hidden_states)).view(shape)
        v = self.v_proj(hidden_states).view(shape)
        log_decay = F.logsigmoid(self.decay_up(self.decay_down(hidden_states))) / 8.0
        decay = log_decay.exp().view(shape)
        state = q.new_zeros(batch, self.num_heads, self.head_dim, self.head_dim)
        outputs = []
        for t in range(length):
            state = state * decay[:, t].unsqueeze(-1) + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
            outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state) * self.head_dim**-0.5)
        o = self.norm(torch.stack(outputs, dim=1)).reshape(batch, length, -1)
        return self.o_proj(o), None, past_key_values
