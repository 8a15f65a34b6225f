"""Whether a reader needs the last clause or the last chapter is known when the question is asked, not when
the text is stored. We therefore file every association twice, in a store that evaporates within a few
words and in another that lasts for hundreds, and let the word that asks decide how much to trust either
answer. Evaporation speeds are plain trainable numbers, one pair for each head. In contrast to the
reference layer nothing is erased by later writes; the volatile store makes that unnecessary for recent
material and the durable one is meant to be an average.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.n = num_heads
        self.inp = nn.ModuleDict({name: nn.Linear(hidden_size, hidden_size, bias=False) for name in "qkv"})
        self.trust = nn.Linear(hidden_size, num_heads)
        self.logits = nn.ParameterList([nn.Parameter(torch.full((num_heads,), c)) for c in (1.0, 5.0)])
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
        q, k, v = (self.inp[n](hidden_states).unflatten(-1, (self.n, -1)) for n in "qkv")
        q, k = F.normalize(F.silu(q), dim=-1), F.normalize(F.silu(k), dim=-1)
        scores = torch.einsum("bthd,bshd->bhts", q, k)
        age = torch.arange(q.shape[1], device=q.device)
        age = (age[:, None] - age).float()
        answers = []
        for logit in self.logits:
            keep = torch.sigmoid(logit)[:, None, None]
            evaporation = torch.where(age >= 0, keep ** age.clamp_min(0), 0.0)
            answers.append(torch.einsum("bhts,bshd->bthd", scores * evaporation, v))
        trust = self.trust(hidden_states).sigmoid()[..., None]
        o = torch.lerp(answers[1], answers[0], trust)
        return self.out(o.flatten(2)), None, past_key_values
