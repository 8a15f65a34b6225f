"""Clustering a stream while it arrives gives attention something finite to look at. A handful of
centroids per head is maintained, each with an address half and a content half; an arriving word
is shared out among them according to a classifier, and every centroid stays the weighted mean of
what it was given. Reading is ordinary normalised dot-product attention in which the centroids
take the place of past words. Since assignments sum to one, no word can be stored twice, and
interference is confined to words that the classifier itself considers alike."""

import torch
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.h, self.m = num_heads, 12
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.assign = nn.Linear(hidden_size, num_heads * self.m)
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
        q, k, v = rearrange(self.qkv(hidden_states), "b t (n h d) -> n b t h d", n=3, h=self.h)
        share = rearrange(self.assign(hidden_states), "b t (h m) -> b t h m", m=self.m).softmax(-1)
        both = torch.cat([k, v], dim=-1)
        total = both.new_zeros(*share[:, 0].shape, both.shape[-1])
        mass = torch.full_like(share[:, 0], 1e-6)
        out = []
        for t in range(q.shape[1]):
            total = total + torch.einsum("bhm,bhd->bhmd", share[:, t], both[:, t])
            mass = mass + share[:, t]
            address, content = (total / mass.unsqueeze(-1)).chunk(2, dim=-1)
            match = torch.einsum("bhd,bhmd->bhm", q[:, t], address) / q.shape[-1] ** 0.5
            out.append(torch.einsum("bhm,bhmd->bhd", match.softmax(-1), content))
        return self.out(torch.stack(out, dim=1).flatten(2)), None, past_key_values
