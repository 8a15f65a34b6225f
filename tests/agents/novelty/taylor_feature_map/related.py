"""The feature maps of linear attention are usually too smooth to imitate the spikes of softmax. We
approximate the exponential kernel by random features that are learned: after projecting queries
and keys to a small width, the feature map is the exponential of several learned linear forms
minus half the squared norm, as in a positive random-feature expansion, with the directions
trained instead of sampled. The kernel is always positive, so a running normaliser is safe, and
it sharpens with the norm of the query, without the quadratic feature size of a Taylor expansion.
No decay and no delta correction are used."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.feature_dim = 4
        self.q_proj = nn.Linear(hidden_size, num_heads * self.feature_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_heads * self.feature_dim, bias=False)
        self.directions = nn.Parameter(torch.randn(num_heads, self.feature_dim, 16))
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def expand(self, x):
        x = x * self.feature_dim**-0.25
        forms = torch.einsum("bthf,hfr->bthr", x, self.directions)
        return torch.exp((forms - x.square().sum(-1, keepdim=True) / 2).clamp_max(10.0))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        b, t, _ = hidden_states.shape
        q = self.expand(self.q_proj(hidden_states).view(b, t, self.num_heads, self.feature_dim))
        k = self.expand(self.k_proj(hidden_states).view(b, t, self.num_heads, self.feature_dim))
        v = self.v_proj(hidden_states).view(b, t, self.num_heads, -1)
        state = torch.einsum("bthf,bthv->bthfv", k, v).cumsum(1)
        mass = k.cumsum(1)
        o = torch.einsum("bthf,bthfv->bthv", q, state)
        o = o / (torch.einsum("bthf,bthf->bth", q, mass).unsqueeze(-1) + 1e-6)
        return self.o_proj(o.flatten(2)), None, past_key_values
