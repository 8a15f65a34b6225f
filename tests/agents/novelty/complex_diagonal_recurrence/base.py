"""Real decays can only fade the past, whereas language has periodic structure such as enumeration
and indentation. We use a linear recurrence with a complex diagonal state: every channel is
multiplied at each step by a learned complex number inside the unit circle, parameterised by a
log rate and a phase, and is driven by a projection of the token scaled so that the state has
unit variance. The output is a learned combination of real and imaginary parts, gated by the
token. Such a state can count modulo small numbers, which a delta-rule memory finds hard to do."""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.in_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.gate_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.log_rate = nn.Parameter(torch.linspace(-5.0, 0.0, hidden_size))
        self.phase = nn.Parameter(torch.rand(hidden_size) * 3.14)
        self.mix_real = nn.Parameter(torch.ones(hidden_size))
        self.mix_imag = nn.Parameter(torch.zeros(hidden_size))
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        rate = self.log_rate.exp()
        eigenvalue = torch.polar(torch.exp(-rate), self.phase)
        drive = self.in_proj(hidden_states) * torch.sqrt(1 - torch.exp(-2 * rate))
        state = torch.zeros_like(drive[:, 0]).to(eigenvalue.dtype)
        outputs = []
        for t in range(drive.shape[1]):
            state = eigenvalue * state + drive[:, t]
            outputs.append(self.mix_real * state.real + self.mix_imag * state.imag)
        o = torch.stack(outputs, dim=1) * F.silu(self.gate_proj(hidden_states))
        return self.o_proj(o), None, past_key_values
