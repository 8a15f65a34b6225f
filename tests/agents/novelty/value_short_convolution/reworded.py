"""What should a lookup return? A lone token is a poor answer, since meaning sits in phrases. Before storage,
this layer smears each payload over its three latest positions with a tiny per-channel filter, but leaves
the addressing side untouched so that matches remain exact. Retrieval is a kernelised average with
non-negative similarities and needs no error correction. At the start of training the filter passes the
newest position through nearly unchanged, which makes the modification safe: the optimiser has to discover
that phrase-level payloads help.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.heads = num_heads
        self.address = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.payload = nn.Linear(hidden_size, hidden_size, bias=False)
        self.smear = nn.Conv1d(hidden_size, hidden_size, 3, groups=hidden_size, padding=2, bias=False)
        nn.init.normal_(self.smear.weight, std=0.05)
        self.smear.weight.data[..., -1] += 1
        self.back = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        length = hidden_states.shape[1]
        payload = self.smear(self.payload(hidden_states).mT)[..., :length].mT
        q, k = (F.elu(self.address(hidden_states)) + 1).chunk(2, dim=-1)
        q, k, payload = (rearrange(x, "b t (h d) -> b h t d", h=self.heads) for x in (q, k, payload))
        causal = torch.ones(length, length, device=q.device).tril()
        similarity = torch.einsum("bhtd,bhsd->bhts", q, k) * causal
        similarity = similarity / similarity.sum(-1, keepdim=True).clamp_min(1e-6)
        read = rearrange(similarity @ payload, "b h t d -> b t (h d)")
        return self.back(read), None, past_key_values
