"""Text has structure at several resolutions and a mixer ought to search all of them at
once. Here one head compares the present word with past words, the next with past
triples, another with spans of nine, and so forth: addresses and contents are
trailing means whose length grows by a constant factor across heads. Only the stored
side is blurred, the asking side stays sharp. Averages over longer spans cancel what
is accidental in single words, giving cheap gist memory next to verbatim memory
inside one layer, with no recurrent state to correct or to decay.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.spans = [3**i for i in range(num_heads)]
        self.ask = nn.Linear(hidden_size, hidden_size, bias=False)
        self.stored = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def trailing_mean(self, x, span):
        ones = torch.ones_like(x[..., :1])
        both = F.pad(torch.cat([x, ones], dim=-1), (0, 0, span - 1, 0)).unfold(1, span, 1).sum(-1)
        return both[..., :-1] / both[..., -1:]

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n = hidden_states.shape[1]
        q = self.ask(hidden_states).chunk(self.h, dim=-1)
        k, v = (x.chunk(self.h, dim=-1) for x in self.stored(hidden_states).chunk(2, dim=-1))
        hidden = torch.ones(n, n, dtype=torch.bool, device=hidden_states.device).triu(1)
        heads = []
        for i, span in enumerate(self.spans):
            scores = q[i] @ self.trailing_mean(k[i], span).mT / q[i].shape[-1] ** 0.5
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            heads.append(weights @ self.trailing_mean(v[i], span))
        return self.out(torch.cat(heads, dim=-1)), None, past_key_values
