"""Learning at test time should borrow the tools of learning at training time. Stochastic gradient
steps on a regression loss, one for each word, are what error-correcting memories amount to; the
heavy-ball method is the first thing anyone would try on top. So each head carries a second
matrix with its inertia: fresh gradients push it, friction, a trained scalar, slows it, and the
memory drifts with it. Outliers then do little harm, consistent facts are picked up quickly, and
the size of the push is chosen by the word.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.proj = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.push = nn.Linear(hidden_size, num_heads)
        self.friction = nn.Parameter(torch.full((num_heads, 1, 1), -1.0))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        q, k, v = rearrange(self.proj(hidden_states), "b t (n h d) -> n t b h 1 d", n=3, h=self.h)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        push = rearrange(self.push(hidden_states).sigmoid(), "b t h -> t b h 1 1")
        inertia = self.friction.exp() / (1 + self.friction.exp())
        memory = drift = torch.zeros_like(k[0].mT @ v[0])
        answers = []
        for qt, kt, vt, pt in zip(q, k, v, push, strict=True):
            drift = inertia * drift - pt * kt.mT @ (kt @ memory - vt)
            memory = memory + drift
            answers.append(qt @ memory)
        return self.out(rearrange(torch.stack(answers), "t b h 1 d -> b t (h d)")), None, past_key_values
