"""One delta update per token applies one Householder-like reflection to the state, and the key of
the update is chosen without looking at the state. We make two updates for every token, where the
second key depends on the first read: the content found under the first key is projected and
becomes the key of the second update, so a token can follow a stored pointer and edit the entry
at its target. Both updates have their own value and write strength. Write strengths range up to
two in order to allow reflections, queries and keys are normalised, and the state is read once
after the second update.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        head_dim = hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.pointer = nn.Parameter(torch.randn(num_heads, head_dim, head_dim) * head_dim**-0.5)
        self.v_proj = nn.ModuleList([nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(2)])
        self.b_proj = nn.ModuleList([nn.Linear(hidden_size, num_heads) for _ in range(2)])
        self.o_norm = nn.RMSNorm(head_dim, eps=1e-5)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def heads(self, x):
        return x.view(*x.shape[:2], self.num_heads, -1)

    def update(self, state, k, v, beta):
        old = torch.einsum("bhk,bhkv->bhv", k, state)
        return state + k.unsqueeze(-1) * (beta * (v - old)).unsqueeze(-2), old

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        q = F.normalize(self.heads(self.q_proj(hidden_states)), dim=-1)
        k = F.normalize(self.heads(self.k_proj(hidden_states)), dim=-1)
        first, second = (self.heads(p(hidden_states)) for p in self.v_proj)
        beta, gamma = (2 * torch.sigmoid(p(hidden_states)).unsqueeze(-1) for p in self.b_proj)
        state = q.new_zeros(q.shape[0], self.num_heads, q.shape[-1], q.shape[-1])
        outputs = []
        for t in range(q.shape[1]):
            state, found = self.update(state, k[:, t], first[:, t], beta[:, t])
            target = torch.einsum("bhv,hvk->bhk", found, self.pointer) + k[:, t]
            target = target * torch.rsqrt(target.square().sum(-1, keepdim=True) + 1e-3)
            state, _ = self.update(state, target, second[:, t], gamma[:, t])
            outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
        return self.o_proj(self.o_norm(torch.stack(outputs, 1)).flatten(2)), None, past_key_values
