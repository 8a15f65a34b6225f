"""Key-value matrices may be overkill. What if each feature merely keeps one number, and the
incoming word says both what that number should become and how far to move it there? No feedback
from the old number to the decision is permitted, which makes the whole thing a weighted running
average and thus computable in parallel. Proposed numbers are forced above zero by a smooth
rectifier to avoid cancellation over long spans. A multiplicative branch after normalisation
compensates for the smaller state. The result has no heads, no addresses and no corrections.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.propose = nn.Linear(hidden_size, hidden_size, bias=False)
        self.move = nn.Linear(hidden_size, hidden_size)
        self.branch = nn.Linear(hidden_size, hidden_size, bias=False)
        self.scale = nn.Parameter(torch.ones(hidden_size))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def normalise(self, x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.scale

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        proposal = F.softplus(self.propose(hidden_states))
        logit = self.move(hidden_states)
        stay = F.logsigmoid(-logit).cumsum(1)
        lag = stay.unsqueeze(2) - stay.unsqueeze(1)
        n = logit.shape[1]
        later = torch.ones(n, n, dtype=torch.bool, device=logit.device).triu(1)
        weight = lag.masked_fill(later[..., None], float("-inf")).exp()
        number = torch.einsum("btsd,bsd->btd", weight, logit.sigmoid() * proposal)
        branch = self.branch(hidden_states)
        return self.out(self.normalise(number) * branch * branch.sigmoid()), None, past_key_values
