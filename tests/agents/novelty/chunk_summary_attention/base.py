"""Local attention is exact but short-sighted and a recurrent memory sees far but blurs.
We divide the sequence into chunks of eight tokens. A token attends to the tokens of
its own chunk up to itself and, in the same softmax, to one summary for every earlier
chunk, the mean of its keys and the mean of its values. Near content is retrieved
exactly, distant content at chunk resolution, and both compete for the same
probability mass. Summaries cost no parameters, shorten the attended sequence by a
factor of eight, and replace the delta-rule state for long-range access.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.chunk = 8
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def summarise(self, x):
        padding = -x.shape[2] % self.chunk
        return F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, self.chunk)).mean(3)

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
        keys = torch.cat([self.summarise(k), k], dim=2)
        values = torch.cat([self.summarise(v), v], dim=2)
        i = torch.arange(t, device=q.device)
        own = i // self.chunk
        earlier = torch.arange(int(own[-1]) + 1, device=q.device) < own[:, None]
        local = (own[:, None] == own) & (i[:, None] >= i)
        o = F.scaled_dot_product_attention(q, keys, values, attn_mask=torch.cat([earlier, local], dim=1))
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
