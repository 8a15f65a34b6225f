"""We put forward phonotactic payload enrichment, a principle under which the semantic cargo of a
memory undergoes coarticulation prior to deposition whereas its retrieval coordinates are left
uncontaminated. Coarticulation is effected channel by channel over a narrow retrospective
aperture. The asymmetry between cargo and coordinates is, we contend, the crux: contaminating
both degrades discrimination, contaminating neither squanders context. Deposition and retrieval
follow a positive-definite kernel expectation that dispenses with corrective plasticity. The
aperture opens gradually in training because its taps are born close to a Kronecker impulse,
yielding a benign optimisation landscape.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.aperture = 4
        self.chambers = num_heads
        self.deliver = nn.Linear(hidden_size, hidden_size, bias=False)
        self.coarticulate = nn.Conv1d(hidden_size, hidden_size, self.aperture, groups=hidden_size, bias=False)
        with torch.no_grad():
            self.coarticulate.weight.mul_(0.1)
            self.coarticulate.weight[:, 0, -1] += 1.0
        self.cargo = nn.Linear(hidden_size, hidden_size, bias=False)
        self.coordinate = nn.Linear(hidden_size, hidden_size, bias=False)
        self.request = nn.Linear(hidden_size, hidden_size, bias=False)

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
        coordinate = F.elu(self.coordinate(hidden_states)) + 1
        request = F.elu(self.request(hidden_states)) + 1
        cargo = self.cargo(hidden_states).transpose(1, 2)
        cargo = self.coarticulate(F.pad(cargo, (self.aperture - 1, 0))).transpose(1, 2)
        cargo, coordinate, request = (
            z.view(n, m, self.chambers, -1).transpose(1, 2) for z in (cargo, coordinate, request)
        )
        affinity = (request @ coordinate.transpose(-1, -2)).tril()
        mass = affinity.sum(-1, keepdim=True).clamp_min(1e-6)
        delivered = (affinity @ cargo / mass).transpose(1, 2).reshape(n, m, c)
        return self.deliver(delivered), None, past_key_values
