"""Readers keep the present sentence verbatim and earlier ones as gist. We give attention the same economy:
positions are grouped into blocks of sixteen; inside the current block every preceding word is a candidate,
while each finished block offers only a single candidate, namely the average of what its words had offered.
All candidates are weighed against each other at once. Nothing new has to be trained for the gist, the
number of candidates falls by more than an order of magnitude on long inputs, and no matrix state with
corrections is carried along."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.h, self.size = num_heads, 16
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
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
        answers = []
        for start in range(0, n, self.size):
            stop = min(start + self.size, n)
            now = slice(start, stop)
            blocks = start // self.size
            gist_k, gist_v = (
                rearrange(x[:, :, :start], "b h (c s) d -> b h c s d", c=blocks, s=self.size).mean(3) for x in (k, v)
            )
            near = torch.ones(stop - start, stop - start, dtype=torch.bool, device=q.device).tril()
            mask = F.pad(near, (blocks, 0), value=True)
            offered_k = torch.cat([gist_k, k[:, :, now]], dim=2)
            offered_v = torch.cat([gist_v, v[:, :, now]], dim=2)
            answers.append(F.scaled_dot_product_attention(q[:, :, now], offered_k, offered_v, attn_mask=mask))
        return self.out(rearrange(torch.cat(answers, dim=2), "b h t d -> b t (h d)")), None, past_key_values
