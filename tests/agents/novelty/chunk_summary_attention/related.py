"""Local attention is exact but short-sighted and a recurrent memory sees far but blurs. We divide the
sequence into chunks of eight tokens. A token attends to the tokens of its own chunk up to itself and, in
the same softmax, to one summary for every earlier chunk. The summary is not a mean: each token predicts a
salience per head, a softmax over the chunk turns saliences into weights, and the log of the total salience
is added to the logit of the summary, so chunks holding more important tokens draw more attention. Near
content is retrieved exactly, distant content selectively, and both compete for the same probability mass
in place of a delta-rule state.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.chunk = 8
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.salience = nn.Linear(hidden_size, num_heads)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def chunks(self, x, value=0.0):
        padding = -x.shape[2] % self.chunk
        return F.pad(x, (0, 0, 0, padding), value=value).unflatten(2, (-1, self.chunk))

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
        q, k, v = (
            p(hidden_states).view(b, t, self.num_heads, -1).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        salience = self.chunks(self.salience(hidden_states).transpose(1, 2).unsqueeze(-1), -30.0)
        weight, total = salience.softmax(3), salience.logsumexp(3)
        keys = torch.cat([(weight * self.chunks(k)).sum(3), k], dim=2)
        values = torch.cat([(weight * self.chunks(v)).sum(3), v], dim=2)
        i = torch.arange(t, device=q.device)
        own = i // self.chunk
        earlier = torch.arange(int(own[-1]) + 1, device=q.device) < own[:, None]
        local = (own[:, None] == own) & (i[:, None] >= i)
        scores = q @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5
        scores = scores + F.pad(total.transpose(-1, -2), (0, t))
        o = scores.masked_fill(~torch.cat([earlier, local], dim=1), float("-inf")).softmax(-1) @ values
        return self.o_proj(o.transpose(1, 2).reshape(b, t, d)), None, past_key_values
