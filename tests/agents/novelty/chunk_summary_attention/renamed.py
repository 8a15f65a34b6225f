"""Telescopic tessellation of history: the past is tiled, tiles are collapsed into centroids as soon
as they are complete, and only the unfinished tile is inspected under the microscope. A single
Gibbs distribution ranges over centroids and microscopic elements alike, so resolution is traded
against relevance automatically. The tessellation is regular and needs no learned boundaries,
which we see as a strength: structure emerges from competition and not from segmentation. Our
approach transcends both the sliding-aperture and the fast-weight paradigm and introduces
collapse as a fundamental operation of sequence models."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.tile = 8
        self.observers = num_heads
        self.develop = nn.Linear(hidden_size, hidden_size, bias=False)
        self.substance = nn.Linear(hidden_size, hidden_size, bias=False)
        self.landmark = nn.Linear(hidden_size, hidden_size, bias=False)
        self.lens = nn.Linear(hidden_size, hidden_size, bias=False)

    def face(self, x):
        return x.view(*x.shape[:2], self.observers, -1).transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n, m, c = hidden_states.shape
        place = torch.arange(m, device=hidden_states.device)
        tile = place // self.tile
        microscope = (place[:, None] >= place) & (tile[:, None] == tile)
        complete = torch.arange(int(tile[-1]) + 1, device=place.device) < tile[:, None]
        view = torch.cat([complete, microscope], dim=1)
        substance = self.face(self.substance(hidden_states))
        substance = torch.cat([self.collapse(substance), substance], dim=2)
        landmark = self.face(self.landmark(hidden_states))
        landmark = torch.cat([self.collapse(landmark), landmark], dim=2)
        lens = self.face(self.lens(hidden_states))
        image = F.scaled_dot_product_attention(lens, landmark, substance, attn_mask=view)
        return self.develop(image.transpose(1, 2).reshape(n, m, c)), None, past_key_values

    def collapse(self, x):
        missing = -x.shape[2] % self.tile
        return F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, self.tile)).mean(3)
