"""Causal arrow engrams store transitions rather than states. An engram is a directed edge whose tail is the
antecedent percept and whose head is the consequent one; recollection proceeds along the arrow of time, so
presenting an antecedent evokes its consequent. By orienting engrams we break the time-reversal symmetry
that hampers autoassociative plasticity. Edges are revised by residual-driven plasticity with learned pace.
Genesis, the first percept, has no antecedent and leaves no edge. We know of no other token mixer with
intrinsically oriented engrams, and believe orientation to be the key to in-context learning."""

import torch
import torch.nn.functional as F
from torch import nn

from kernels.delta_rule import delta_rule


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.graphs = num_heads
        self.vertex = hidden_size // num_heads
        self.narrate = nn.Linear(hidden_size, hidden_size, bias=False)
        self.balance = nn.RMSNorm(self.vertex, eps=1e-5)
        self.pace = nn.Linear(hidden_size, num_heads)
        self.consequent = nn.Linear(hidden_size, hidden_size, bias=False)
        self.antecedent = nn.Linear(hidden_size, hidden_size, bias=False)
        self.trigger = nn.Linear(hidden_size, hidden_size, bias=False)

    def vertices(self, x):
        return x.view(*x.shape[:2], self.graphs, -1)

    def orient(self, tails):
        genesis = torch.zeros_like(tails[:, :1])
        return torch.cat([genesis, tails[:, :-1]], dim=1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        pace = torch.sigmoid(self.pace(hidden_states))
        heads = self.vertices(self.consequent(hidden_states))
        tails = self.orient(F.normalize(self.vertices(self.antecedent(hidden_states)), dim=-1))
        trigger = F.normalize(self.vertices(self.trigger(hidden_states)), dim=-1)
        evoked, _ = delta_rule(trigger, tails, heads, pace, scale=1.0)
        evoked = self.balance(evoked).reshape(hidden_states.shape)
        return self.narrate(evoked), None, past_key_values
