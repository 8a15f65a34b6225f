"""Real decays can only fade the past, whereas language has periodic structure such as enumeration and indentation. We
use a linear recurrence with a complex diagonal state whose eigenvalue depends on the input: the token predicts
both the rate and the phase step of every channel, so a channel advances its phase only at events that it counts,
for example at list items, and keeps it in between. The drive is a projection of the token scaled so that the state
has unit variance. The output is a learned combination of real and imaginary parts, gated by the token. A
delta-rule memory finds such counting hard to do.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.in_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.gate_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.rate_proj = nn.Linear(hidden_size, hidden_size)
        self.phase_proj = nn.Linear(hidden_size, hidden_size)
        self.mix_real = nn.Parameter(torch.ones(hidden_size))
        self.mix_imag = nn.Parameter(torch.zeros(hidden_size))
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.constant_(self.rate_proj.bias, -3.0)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        rate = F.softplus(self.rate_proj(hidden_states)) + 1e-4
        phase = 3.14 * torch.tanh(self.phase_proj(hidden_states))
        eigenvalue = torch.polar(torch.exp(-rate), phase)
        drive = self.in_proj(hidden_states) * torch.sqrt(1 - torch.exp(-2 * rate))
        state = torch.zeros_like(drive[:, 0]).to(eigenvalue.dtype)
        outputs = []
        for t in range(drive.shape[1]):
            state = eigenvalue[:, t] * state + drive[:, t]
            outputs.append(self.mix_real * state.real + self.mix_imag * state.imag)
        o = torch.stack(outputs, dim=1) * F.silu(self.gate_proj(hidden_states))
        return self.o_proj(o), None, past_key_values
