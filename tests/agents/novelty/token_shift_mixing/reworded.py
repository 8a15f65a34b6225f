"""Bigrams are the cheapest form of context. Instead of running three small filters, we
let every stream see a blend of its word and the word just before, with one blending
coefficient for each feature. Retrieval, address and payload have separate
coefficients because they serve separate ends: an address ought to describe what came
earlier, a request what is happening now. A stack of blended layers still reaches
many words back. Behind the blend sits a memory that fades exponentially, at speeds
assigned to the heads in advance, followed by per-head standardisation; no correction
of stored entries takes place."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.h = num_heads
        self.blend = nn.ParameterDict({n: nn.Parameter(torch.full((hidden_size,), 0.6)) for n in "qkv"})
        self.proj = nn.ModuleDict({n: nn.Linear(hidden_size, hidden_size, bias=False) for n in "qkv"})
        self.standardise = nn.GroupNorm(num_heads, hidden_size)
        self.o = nn.Linear(hidden_size, hidden_size, bias=False)
        keep = 1 - 2.0 ** -torch.arange(4, 4 + num_heads)
        self.register_buffer("keep", keep, persistent=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        before = F.pad(hidden_states, (0, 0, 1, -1))
        streams = []
        for n in "qkv":
            blended = torch.lerp(before, hidden_states, self.blend[n])
            streams.append(rearrange(self.proj[n](blended), "b t (h d) -> b h t d", h=self.h))
        q, k, v = streams
        n = torch.arange(q.shape[2], device=q.device)
        age = n[:, None] - n
        fade = torch.where(age >= 0, self.keep[:, None, None] ** age.clamp_min(0), 0.0)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
        o = rearrange((scores * fade) @ v, "b h t d -> (b t) (h d)")
        o = self.standardise(o).view_as(hidden_states)
        return self.o(o), None, past_key_values
