"""The decay of gated delta memories is predicted from the token before the memory is consulted, so the layer cannot
know whether its content is outdated. We compute the forget factor from the prediction error: the memory is read
with the key, the root mean square of the difference to the value measures surprise, and a sigmoid of a learned
affine function of surprise plus a token-dependent logit gives how much of the whole state is kept. While
predictions are right nothing is forgotten; a surprise clears the head, as at a change of topic. The write strength
stays a function of the token alone, and the error-correcting form of the update is kept."""

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
        self.f_proj = nn.Linear(hidden_size, num_heads)
        self.sensitivity = nn.Parameter(torch.ones(num_heads))
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.constant_(self.f_proj.bias, 4.0)

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
        beta, logit = torch.sigmoid(self.b_proj(hidden_states)), self.f_proj(hidden_states)
        memory = v.new_zeros(b, self.num_heads, self.head_dim, self.head_dim)
        outputs = []
        for i in range(t):
            error = v[:, i] - torch.einsum("bhk,bhkv->bhv", k[:, i], memory)
            surprise = torch.sqrt(error.square().mean(-1) + 1e-6)
            keep = torch.sigmoid(logit[:, i] - self.sensitivity * surprise)[..., None, None]
            memory = keep * memory
            error = v[:, i] - torch.einsum("bhk,bhkv->bhv", k[:, i], memory)
            write = beta[:, i].unsqueeze(-1) * error
            memory = memory + k[:, i].unsqueeze(-1) * write.unsqueeze(-2)
            outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, i], memory))
        return self.o_proj(torch.stack(outputs, dim=1).reshape(b, t, d)), None, past_key_values
