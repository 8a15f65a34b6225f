"""When every address points roughly the same way, an associative table has few usable slots. The shared part is easy
to estimate while reading: it is the average address up to now. Taking it away, from the addresses as well as from
the requests, leaves what is distinctive about each word relative to its document. We remove a trained fraction of
it, head by head, and rescale to length one afterwards. The table then suffers less cross-talk; everything after
the subtraction follows the familiar error-correcting recipe with learned write strengths."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.write = nn.Linear(hidden_size, num_heads, bias=False)
        self.fraction = nn.Parameter(torch.full((num_heads, 1), 0.5))
        self.scale = nn.RMSNorm(hidden_size // num_heads, eps=1e-5)
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
        q, k, v = rearrange(self.qkv(hidden_states), "b t (n h d) -> n b t h d", n=3, h=self.h)
        write = torch.sigmoid(self.write(hidden_states))[..., None]
        total, answers = torch.zeros_like(k[:, 0]), []
        table = torch.zeros_like(k[:, 0, :, :, None] * v[:, 0, :, None, :])
        for t in range(q.shape[1]):
            shared = self.fraction * total / (t + 1)
            total = total + k[:, t]
            request = F.normalize(q[:, t] - shared, dim=-1)
            address = F.normalize(k[:, t] - shared, dim=-1)
            error = F.gelu(v[:, t]) - torch.einsum("bhk,bhkv->bhv", address, table)
            table = table + torch.einsum("bhk,bhv->bhkv", address, write[:, t] * error)
            answers.append(torch.einsum("bhk,bhkv->bhv", request, table))
        return self.out(self.scale(torch.stack(answers, dim=1)).flatten(2)), None, past_key_values
