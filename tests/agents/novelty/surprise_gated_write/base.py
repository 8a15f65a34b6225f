"""The write strength of DeltaNet is predicted from the token before the memory is consulted, so the layer cannot know
whether the token is news. We compute the strength from the prediction error itself: the memory is read with the
key, the root mean square of the difference to the value measures surprise, and a sigmoid of a learned affine
function of surprise plus a token-dependent logit gives the strength for each head. Expected tokens leave the
memory alone, surprising ones are written strongly, and the token can still override the decision. The
error-correcting form of the update is kept."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.b_proj = nn.Linear(hidden_size, num_heads)
        self.sensitivity = nn.Parameter(torch.ones(num_heads))
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
        q, k = F.normalize(F.silu(q), dim=-1), F.normalize(F.silu(k), dim=-1)
        logit = self.b_proj(hidden_states)
        memory = v.new_zeros(b, self.num_heads, self.head_dim, self.head_dim)
        outputs = []
        for i in range(t):
            error = v[:, i] - torch.einsum("bhk,bhkv->bhv", k[:, i], memory)
            surprise = torch.sqrt(error.square().mean(-1) + 1e-6)
            beta = torch.sigmoid(logit[:, i] + self.sensitivity * surprise)
            write = beta.unsqueeze(-1) * error
            memory = memory + k[:, i].unsqueeze(-1) * write.unsqueeze(-2)
            outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, i], memory))
        return self.o_proj(torch.stack(outputs, dim=1).reshape(b, t, d)), None, past_key_values
