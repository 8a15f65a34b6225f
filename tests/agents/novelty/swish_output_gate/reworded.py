"""Retrieval from an overwriting associative store can fail silently, returning something of arbitrary
magnitude that has nothing to do with the question. Two small measures repair this. First, what each head
retrieved is rescaled to standard size. Second, the present word casts a feature-wise vote on the rescaled
vector, by multiplication with a smoothly rectified linear map of itself, ahead of the final mixing matrix.
Useless features are thereby muted at their source. Storage and lookup are unchanged from the usual
error-correcting layer with unit addresses and learned write strengths.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.heads = (num_heads, hidden_size // num_heads)
        self.inputs = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.strength = nn.Linear(hidden_size, num_heads, bias=False)
        self.rescale = nn.RMSNorm(hidden_size // num_heads, eps=1e-5)
        self.mix = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        q, k, v, vote = self.inputs(hidden_states).chunk(4, dim=-1)
        q, k, v = (F.silu(x).unflatten(-1, self.heads) for x in (q, k, v))
        q, k = q / (q.norm(dim=-1, keepdim=True) + 1e-6), k / (k.norm(dim=-1, keepdim=True) + 1e-6)
        strength = self.strength(hidden_states).sigmoid()[..., None, None]
        store = torch.zeros_like(k[:, 0, :, :, None] * v[:, 0, :, None, :])
        found = []
        for t in range(q.shape[1]):
            error = v[:, t, :, None, :] - k[:, t, :, None, :] @ store
            store = store + strength[:, t] * k[:, t, :, :, None] * error
            found.append((q[:, t, :, None, :] @ store).squeeze(-2))
        found = self.rescale(torch.stack(found, dim=1)).flatten(2)
        return self.mix(found * F.gelu(vote)), None, past_key_values
