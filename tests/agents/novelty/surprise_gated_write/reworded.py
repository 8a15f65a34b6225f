"""Brains remember what they did not expect. Error-correcting memories already compute a
mismatch between recollection and fact, but then scale the correction by a factor
that was decided in ignorance of it. We feed the size of the mismatch back into that
factor. Its average magnitude, times a trained coefficient, is added to the opinion
of the word, and a squashing function turns the sum into how much of the correction
goes through. Predictable words thereby cost no storage, whereas contradictions are
absorbed at once. The rest of the layer is untouched."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.opinion = nn.Linear(hidden_size, num_heads)
        self.coefficient = nn.Parameter(torch.full((num_heads, 1, 1), 0.5))
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
        q, k, v = rearrange(self.qkv(hidden_states), "b t (n h d) -> n t b h 1 d", n=3, h=self.h)
        q, k = F.normalize(F.silu(q), dim=-1), F.normalize(F.silu(k), dim=-1)
        opinion = rearrange(self.opinion(hidden_states), "b t h -> t b h 1 1")
        memory = torch.zeros_like(k[0].mT @ v[0])
        recalled = []
        for qt, kt, vt, ot in zip(q, k, v, opinion, strict=True):
            mismatch = vt - kt @ memory
            size = mismatch.abs().mean(-1, keepdim=True)
            through = torch.sigmoid(ot + self.coefficient * size)
            memory = memory + kt.mT @ (through * mismatch)
            recalled.append(qt @ memory)
        recalled = rearrange(torch.stack(recalled), "t b h 1 d -> b t (h d)")
        return self.out(recalled), None, past_key_values
