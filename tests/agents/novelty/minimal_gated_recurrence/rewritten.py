"""We introduce log-domain evidence accumulation. Evidence for each feature is a
non-negative quantity whose logarithm is accumulated together with the logarithm of
discounting, by a cumulative log-sum-exp, so no sequential loop is needed and
underflow is impossible. Discounting and evidence strength are complementary
log-sigmoids of one logit; the magnitude of evidence is a rectified affine function.
Accumulated evidence is exponentiated, standardised and finally weighted by a
sigmoid-linear branch. Working in the log domain throughout is unusual for token
mixers and yields a probabilistic reading that fast-weight memories with delta
corrections do not offer.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.features = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.logit_bias = nn.Parameter(torch.zeros(hidden_size))
        self.scale = nn.Parameter(torch.zeros(hidden_size))
        self.out = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size**0.5)

    def log_evidence(self, x):
        return torch.where(x > 0, torch.log(F.relu(x) + 0.5), -F.softplus(-x))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        magnitude, logit, branch = self.features(hidden_states).chunk(3, dim=-1)
        logit = logit + self.logit_bias
        log_discount = torch.cumsum(-F.softplus(logit), dim=1)
        log_strength = -F.softplus(-logit)
        log_drive = log_strength + self.log_evidence(magnitude) - log_discount
        accumulated = torch.exp(log_discount + torch.logcumsumexp(log_drive, dim=1))
        power = torch.einsum("btd,btd->bt", accumulated, accumulated) / accumulated.shape[-1]
        standard = accumulated * torch.rsqrt(power + 1e-6).unsqueeze(-1)
        standard = standard + self.scale * standard
        branch = branch * 0.5 * (1 + torch.tanh(branch / 2))
        return torch.einsum("btd,de->bte", standard * branch, self.out), None, past_key_values
