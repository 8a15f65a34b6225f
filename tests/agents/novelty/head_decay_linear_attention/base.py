"""DeltaNet frees space in its memory only when a new key collides with an old one, so
stale associations that are never revisited stay forever. We drop the delta
correction and use additive linear attention whose state is multiplied by one forget
factor per head at every step, where the factor is predicted from the current token.
Heads can therefore specialise on short or long horizons and the model can flush a
head at a topic boundary. All pairwise decays come from differences of cumulative log
factors, so training stays parallel over the sequence."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    """Linear attention with a data-dependent scalar decay per head."""

    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.decay_proj = nn.Linear(hidden_size, num_heads)
        self.norm = nn.LayerNorm(self.head_dim)
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
        batch, length, _ = hidden_states.shape
        shape = (batch, length, self.num_heads, self.head_dim)
        q = F.silu(self.q_proj(hidden_states)).view(shape).transpose(1, 2)
        k = F.silu(self.k_proj(hidden_states)).view(shape).transpose(1, 2)
        v = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        log_decay = F.logsigmoid(self.decay_proj(hidden_states)) / 8.0
        total = log_decay.cumsum(1).transpose(1, 2)
        relative = total.unsqueeze(-1) - total.unsqueeze(-2)
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        weights = relative.masked_fill(future, float("-inf")).exp()
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5
        o = self.norm((scores * weights) @ v)
        o = o.transpose(1, 2).reshape(batch, length, -1)
        return self.o_proj(o), None, past_key_values
