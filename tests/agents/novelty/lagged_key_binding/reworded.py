"""After seeing "Mr Dursley" once, a model should answer "Dursley" when it meets "Mr" again. With ordinary fast
weights this takes two layers, for the entry filed under "Mr" is about "Mr". Filing each word under its predecessor
instead makes the answer immediate. Our change to the corrective memory is a displacement by one position of the
addresses relative to contents and requests. At the very beginning, where there is no predecessor, filing is
skipped. The table, its corrections and its strengths otherwise work as usual, and the parameter count remains what
it was."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.proj = nn.ModuleDict(
            {n: nn.Linear(hidden_size, hidden_size, bias=False) for n in ("ask", "file", "content", "out")}
        )
        self.strength = nn.Linear(hidden_size, num_heads)
        self.scale = nn.Parameter(torch.ones(hidden_size // num_heads))

    def part(self, name, x):
        return self.proj[name](x).unflatten(-1, (self.h, -1))

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        ask = F.normalize(F.silu(self.part("ask", hidden_states)), dim=-1)
        file = F.normalize(F.silu(self.part("file", hidden_states)), dim=-1)
        content = self.part("content", hidden_states)
        strength = torch.sigmoid(self.strength(hidden_states))[..., None]
        table = torch.zeros_like(file[:, 0, :, :, None] * content[:, 0, :, None, :])
        answers = []
        for t in range(ask.shape[1]):
            if t > 0:
                error = content[:, t] - torch.einsum("bhk,bhkv->bhv", file[:, t - 1], table)
                table = table + torch.einsum("bhk,bhv->bhkv", file[:, t - 1], strength[:, t] * error)
            else:
                table = table + 0 * strength[:, t].unsqueeze(-1) * file[:, t].unsqueeze(-1)
            answers.append(torch.einsum("bhk,bhkv->bhv", ask[:, t], table))
        o = torch.stack(answers, dim=1)
        o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * self.scale
        return self.proj["out"](o.flatten(2)), None, past_key_values
