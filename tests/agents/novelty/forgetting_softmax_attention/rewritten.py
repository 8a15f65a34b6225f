"""We describe an online normalised estimator with leaky evidence. The estimator scans a
growing buffer of standardised address vectors; before each new entry arrives, the
log evidence of all buffered entries is reduced by an amount chosen by the newcomer,
and the answer is the evidence-weighted mean of the contents. Maintaining log
evidence in a buffer that leaks, rather than computing positional biases, gives
attention the semantics of a recurrent layer at inference time: old entries whose
evidence has leaked away may be evicted. The leak is a logistic quantity for every
head, the similarity a scaled product."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.fused = nn.Linear(hidden_size, 3 * hidden_size + num_heads, bias=False)
        self.leak_bias = nn.Parameter(torch.full((num_heads,), 2.0))
        self.scales = nn.Parameter(torch.zeros(2, hidden_size // num_heads))
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
        d, n = hidden_states.shape[-1], hidden_states.shape[1]
        *qkv, leak = self.fused(hidden_states).split([d, d, d, self.num_heads], dim=-1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in qkv)
        q, k = (
            x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + s)
            for x, s in zip((q, k), self.scales, strict=True)
        )
        leak = F.softplus(-leak - self.leak_bias)
        evidence = leak.new_zeros(len(q), 0, self.num_heads)
        answers = []
        for t in range(n):
            evidence = torch.cat([evidence - leak[:, t : t + 1], torch.zeros_like(leak[:, :1])], dim=1)
            logit = torch.einsum("bhd,bshd->bsh", q[:, t], k[:, : t + 1]) / q.shape[-1] ** 0.5 + evidence
            weight = torch.exp(logit - logit.logsumexp(dim=1, keepdim=True))
            answers.append(torch.einsum("bsh,bshd->bhd", weight, v[:, : t + 1]))
        return self.out(torch.stack(answers, dim=1).flatten(2)), None, past_key_values
