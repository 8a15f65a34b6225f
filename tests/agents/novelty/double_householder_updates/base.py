"""One delta update per token applies one Householder-like reflection to the state,
which limits the permutations that the layer can track. We make two updates for every
token, each with its own key, value and write strength, and read the state once after
the second. The product of two reflections can represent a rotation, so state
tracking improves, and a token may erase under one key while it writes under another.
Write strengths range up to two in order to allow reflections. Queries and keys are
normalised, and the sequence of updates within a token is fixed."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads, self.updates = num_heads, 2
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.ModuleList([nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(self.updates)])
        self.v_proj = nn.ModuleList([nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(self.updates)])
        self.b_proj = nn.ModuleList([nn.Linear(hidden_size, num_heads) for _ in range(self.updates)])
        self.o_norm = nn.RMSNorm(hidden_size // num_heads, eps=1e-5)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def heads(self, x):
        return x.view(*x.shape[:2], self.num_heads, -1)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        q = F.normalize(self.heads(self.q_proj(hidden_states)), dim=-1)
        keys = [F.normalize(self.heads(p(hidden_states)), dim=-1) for p in self.k_proj]
        values = [self.heads(p(hidden_states)) for p in self.v_proj]
        betas = [2 * torch.sigmoid(p(hidden_states)).unsqueeze(-1) for p in self.b_proj]
        state = q.new_zeros(q.shape[0], self.num_heads, q.shape[-1], q.shape[-1])
        outputs = []
        for t in range(q.shape[1]):
            for k, v, beta in zip(keys, values, betas, strict=True):
                old = torch.einsum("bhk,bhkv->bhv", k[:, t], state)
                write = beta[:, t] * (v[:, t] - old)
                state = state + k[:, t].unsqueeze(-1) * write.unsqueeze(-2)
            outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
        o = self.o_norm(torch.stack(outputs, dim=1))
        return self.o_proj(o.flatten(2)), None, past_key_values
