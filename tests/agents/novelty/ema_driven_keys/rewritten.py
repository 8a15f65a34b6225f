"""We introduce low-pass geometry: before similarities are measured, the embedding trajectory is passed through a bank
of causal single-pole low-pass filters with trainable cut-off frequencies, one filter per coordinate. Similarity of
filtered trajectories is robust against lexical noise, while the payload keeps its high frequencies. Filtering is
carried out by an associative scan, and the projection of the filtered trajectory to both sides of the similarity
is fused, hence the cost over a normal attention layer is marginal. In the spirit of minimalism the layer discards
delta updates, forget gates and convolutions, and relies upon filtered geometry alone."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from kernels.linear_scan import linear_scan


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.cutoff = nn.Parameter(torch.linspace(-3.0, 3.0, hidden_size))
        self.geometry = nn.Parameter(torch.randn(hidden_size, 2 * hidden_size) / hidden_size**0.5)
        self.payload = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size**0.5)
        self.out = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size**0.5)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        log_keep = F.logsigmoid(-self.cutoff)
        drive = hidden_states * (0.5 + 0.5 * torch.tanh(self.cutoff / 2))
        filtered = linear_scan(drive, log_keep)
        q, k = (filtered @ self.geometry).chunk(2, dim=-1)
        q, k, v = (rearrange(x, "b t (h d) -> h b t d", h=self.num_heads) for x in (q, k, hidden_states @ self.payload))
        energy = torch.matmul(q, k.mT) / q.shape[-1] ** 0.5
        blocked = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
        energy = energy.masked_fill(blocked, float("-inf"))
        attention = torch.exp(energy - energy.logsumexp(dim=-1, keepdim=True))
        o = rearrange(attention @ v, "h b t d -> b t (h d)")
        return o @ self.out, None, past_key_values
