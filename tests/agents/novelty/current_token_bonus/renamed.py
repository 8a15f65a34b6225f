"""Reflexive versus historical evidence: any act of recollection mingles the testimony of the witness with the
record of the court. We separate them. The record is consulted strictly before the witness is entered, and
testimony is admitted under a learned, feature-resolved admissibility coefficient, possibly hostile, that
leaves the record unaffected. The record itself ages according to trainable perishability constants
resolved by feature and accrues without revision. This jurisprudential decomposition furnishes sequence
models with an explicit handle on self-reference, which corrective and decaying memories conflate with
history, and requires only a handful of additional scalars."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.courts, self.articles = num_heads, hidden_size // num_heads
        self.verdict = nn.Linear(hidden_size, hidden_size, bias=False)
        self.review = nn.LayerNorm(self.articles)
        self.admissible = nn.Parameter(torch.full((num_heads, self.articles), 0.5))
        self.perish = nn.Parameter(torch.linspace(-4.0, 0.0, hidden_size).view(num_heads, self.articles))
        self.testimony = nn.Linear(hidden_size, hidden_size, bias=False)
        self.matter = nn.Linear(hidden_size, hidden_size, bias=False)
        self.question = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n, m, c = hidden_states.shape
        testimony = self.testimony(hidden_states).view(n, m, self.courts, -1)
        matter = self.matter(hidden_states).view(n, m, self.courts, -1)
        question = self.question(hidden_states).view(n, m, self.courts, -1)
        record = testimony.new_zeros(n, self.courts, self.articles, self.articles)
        survive = torch.exp(-torch.exp(self.perish)).unsqueeze(-1)
        rulings = []
        for session in range(m):
            witness = matter[:, session].unsqueeze(-1) * testimony[:, session].unsqueeze(-2)
            evidence = record + self.admissible.unsqueeze(-1) * witness
            record = survive * record + witness
            rulings.append(torch.einsum("bhk,bhkv->bhv", question[:, session], evidence))
        rulings = self.review(torch.stack(rulings, dim=1) * self.articles**-0.5)
        return self.verdict(rulings.reshape(n, m, c)), None, past_key_values
