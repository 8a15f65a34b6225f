"""We propose sparse lag interaction. For each group of channels a tiny set of lags is
selected from a geometric grid, and tokens at those lags interact by a ternary
product between a receiver coefficient, an emitter coefficient and an emitted
amplitude, weighted with a trainable lag spectrum. Gathering lags by explicit
indexing allows the lag set to be irregular and avoids any filtering primitive. The
ternary product raises the order of interaction beyond that of attention without
normalisation. Our approach departs from memories with delta updates, as interaction
is direct and not mediated by a state, and is trivially parallel."""

import torch
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.emitter = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.receiver = nn.Linear(hidden_size, hidden_size, bias=False)
        self.spectrum = nn.Parameter(torch.randn(num_heads, hidden_size // num_heads, 5) / 5**0.5)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def lags(self, device):
        taps = torch.arange(4, -1, -1, device=device)
        return taps * 2 ** torch.arange(self.num_heads, device=device)[:, None]

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
        amplitude, coefficient = self.emitter(hidden_states).chunk(2, dim=-1)
        emitted = rearrange(amplitude * coefficient, "b t (h c) -> b h t c", h=self.num_heads)
        index = torch.arange(n, device=emitted.device)[None, :, None] - self.lags(emitted.device)[:, None, :]
        valid = (index >= 0).unsqueeze(-1)
        heads = torch.arange(self.num_heads, device=emitted.device)[:, None, None]
        gathered = emitted[:, heads, index.clamp_min(0)] * valid
        mixed = torch.einsum("bhtlc,hcl->bthc", gathered, self.spectrum).flatten(2)
        return self.out(mixed * self.receiver(hidden_states)), None, past_key_values
