""" "None of the above" is an option missing from standard attention. Deprived of it, heads that have
nothing to say park their probability on a delimiter and must then learn to ignore what comes
back. We add the option explicitly, as one trained score for each head against which all genuine
candidates compete, and which returns zero when it wins. Outputs then shrink in proportion to how
little was found. It is initialised low, so nothing changes at first. No overwriting memory and
no output gate are needed in addition.
"""

import torch
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.temperature = (hidden_size // num_heads) ** -0.25
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.none = nn.Parameter(torch.full((num_heads, 1), -1.0))
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
        n = hidden_states.shape[1]
        q, k, v = rearrange(self.qkv(hidden_states), "b t (n h d) -> n b h t d", n=3, h=self.h)
        candidates = torch.einsum("bhtd,bhsd->bhts", q, k) * self.temperature
        hidden = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        candidates = candidates.masked_fill(hidden, float("-inf"))
        best = torch.maximum(candidates.amax(-1), self.none).unsqueeze(-1)
        numerator = torch.exp(candidates - best)
        nothing = torch.exp(self.none.unsqueeze(-1) - best)
        o = numerator @ v / (numerator.sum(-1, keepdim=True) + nothing)
        return self.out(rearrange(o, "b h t d -> b t (h d)")), None, past_key_values
