"""The delta rule is one step of gradient descent per token, and like any such step it is noisy: a
single unusual token can ruin a good association. We add momentum. The gradient of the
reconstruction error updates a velocity matrix that decays with a learned factor per head, and
the memory moves along the velocity, so repeated evidence accelerates a write whereas isolated
evidence is damped. The step size is predicted from the token. Keys and queries are normalised to
unit length. Because the error is taken at the current memory, the correction of old content
survives.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.step = nn.Linear(hidden_size, num_heads)
        self.momentum = nn.Parameter(torch.zeros(num_heads))
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
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        step = torch.sigmoid(self.step(hidden_states))[..., None, None] * 0.5
        momentum = torch.sigmoid(self.momentum)[:, None, None]
        memory = v.new_zeros(b, self.num_heads, self.head_dim, self.head_dim)
        velocity = torch.zeros_like(memory)
        outputs = []
        for i in range(t):
            error = v[:, i] - torch.einsum("bhk,bhkv->bhv", k[:, i], memory)
            gradient = k[:, i].unsqueeze(-1) * error.unsqueeze(-2)
            velocity = momentum * velocity + step[:, i] * gradient
            memory = memory + velocity
            outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, i], memory))
        return self.o_proj(torch.stack(outputs, 1).reshape(b, t, d)), None, past_key_values
