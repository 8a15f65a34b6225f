"""Some lookups want a single entry and others an average, yet the sharpness of a read
is fixed in most layers. We let each token set the temperature of its own attention:
queries and keys have unit length, and their cosine is multiplied by a positive
inverse temperature predicted from the querying token for every head. The growth of
the number of keys is compensated by the logarithm of the position, so that sharpness
does not dilute over long inputs. The read is causal softmax attention over the
values in place of the delta-rule memory."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.t_proj = nn.Linear(hidden_size, num_heads)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.constant_(self.t_proj.bias, 3.0)

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
        q, k, v = (
            p(hidden_states).view(b, t, self.num_heads, -1).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)
        position = torch.arange(1, t + 1, device=q.device).view(1, t, 1)
        inverse = F.softplus(self.t_proj(hidden_states)) * torch.log1p(position)
        scores = cosine * inverse.transpose(1, 2).unsqueeze(-1)
        future = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1)
        o = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
