"""Annealed spherical consensus: opinions are unit vectors, and consensus among predecessors is formed at a
temperature which the newcomer itself negotiates. Cold newcomers elect a dictator, warm newcomers hold a
plebiscite. A logarithmic quench counteracts the entropic advantage of large electorates, keeping the order
parameter intensive. The thermodynamic language makes transparent a degree of freedom that has been frozen
in prior attention, linear or otherwise, and that interacts with neither decay nor plasticity. We
conjecture that the annealed consensus undergoes a genuine phase transition during training, at which
copying abilities emerge abruptly."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.assemblies = num_heads
        self.resolution = nn.Linear(hidden_size, hidden_size, bias=False)
        self.coldness = nn.Linear(hidden_size, num_heads)
        nn.init.constant_(self.coldness.bias, 3.0)
        self.ballot = nn.Linear(hidden_size, hidden_size, bias=False)
        self.opinion = nn.Linear(hidden_size, hidden_size, bias=False)
        self.newcomer = nn.Linear(hidden_size, hidden_size, bias=False)

    def quench(self, states):
        electorate = torch.arange(1, states.shape[1] + 1, device=states.device).view(1, -1, 1)
        return (F.softplus(self.coldness(states)) * torch.log1p(electorate)).transpose(1, 2).unsqueeze(-1)

    def assemble(self, x):
        return x.view(*x.shape[:2], self.assemblies, -1).transpose(1, 2)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        ballot = self.assemble(self.ballot(hidden_states))
        opinion = F.normalize(self.assemble(self.opinion(hidden_states)), dim=-1)
        newcomer = F.normalize(self.assemble(self.newcomer(hidden_states)), dim=-1)
        agreement = (newcomer @ opinion.transpose(-1, -2)) * self.quench(hidden_states)
        size = agreement.shape[-1]
        unborn = torch.ones(size, size, dtype=torch.bool, device=agreement.device).triu(1)
        election = agreement.masked_fill(unborn, float("-inf")).softmax(-1)
        outcome = (election @ ballot).transpose(1, 2).reshape(hidden_states.shape)
        return self.resolution(outcome), None, past_key_values
