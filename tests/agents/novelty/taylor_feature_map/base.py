"""The feature maps of linear attention are usually too smooth to imitate the spikes of
softmax. We approximate the exponential kernel by its second-order Taylor expansion:
after projecting queries and keys to a small width, the feature map is the
concatenation of one, the vector, and the scaled outer product of the vector with
itself. The kernel is always positive, so a running normaliser is safe, and it
sharpens with the norm of the query. The small projection keeps the quadratic feature
size affordable. No decay and no delta correction are used; recall comes from the
larger effective state.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.feature_dim = 4
        self.q_proj = nn.Linear(hidden_size, num_heads * self.feature_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_heads * self.feature_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def expand(self, x):
        x = x * self.feature_dim**-0.25
        square = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) / 2**0.5
        return torch.cat([torch.ones_like(x[..., :1]), x, square], dim=-1)

    def forward(
        self,
        hidden_states,
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
