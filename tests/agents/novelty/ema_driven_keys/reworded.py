"""People look things up by the situation they are in and not by the word they happen to
be reading. To give attention the same habit, addresses and requests are computed
from a leaky running summary of the stream, whose leak is trained separately for each
feature; payloads are taken from the unsmoothed stream so nothing gets blurred on the
way out. Fast-leaking features behave like ordinary attention, slow ones like topic
matching. We found no need for an explicit memory matrix or a correction rule once
addresses carry context."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.leak = nn.Parameter(torch.linspace(-4.0, 2.0, hidden_size))
        self.qk = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.val = nn.Linear(hidden_size, hidden_size, bias=False)
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
        b, n, d = hidden_states.shape
        rate = torch.tanh(F.softplus(self.leak))
        i = torch.arange(n, device=rate.device)
        age = (i[:, None] - i).clamp_min(0)
        weights = rate * torch.pow(1 - rate, age[..., None]) * (i[:, None] >= i)[..., None]
        summary = torch.einsum("tsd,bsd->btd", weights, hidden_states)
        q, k = self.qk(summary).chunk(2, dim=-1)
        q, k, v = (x.view(b, n, self.h, d // self.h) for x in (q, k, self.val(hidden_states)))
        scores = torch.einsum("bthd,bshd->bhts", q, k) * (d // self.h) ** -0.5
        scores = scores.masked_fill(i[:, None] < i, float("-inf"))
        o = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
        return self.out(o.flatten(2)), None, past_key_values
