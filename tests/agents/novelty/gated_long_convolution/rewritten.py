"""We present multiplicatively coupled leaky integrators. A bilinear drive charges a
bundle of leaky integrators in every channel, whose discharge constants are
trainable; a linear readout collects the bundle and adds a feed-through of the drive;
the sum is then modulated by a carrier. In contrast to frequency-domain layers our
system is expressed in the time domain as a small state space, so generation takes
constant time per token. In contrast to fast-weight layers the state is diagonal. The
bilinear drive and the carrier supply the selectivity that time-invariant systems are
commonly said to be missing."""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.carrier = nn.Linear(hidden_size, hidden_size)
        self.drive = nn.Linear(hidden_size, 2 * hidden_size)
        self.log_discharge = nn.Parameter(torch.linspace(-5.0, 0.0, 4)[:, None].repeat(1, hidden_size))
        self.readout = nn.Parameter(torch.randn(4, hidden_size) / 2)
        self.feed = nn.Parameter(torch.zeros(hidden_size))
        self.out = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size**0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        carrier = self.carrier(hidden_states)
        left, right = self.drive(hidden_states).chunk(2, dim=-1)
        drive = left * right
        keep = torch.exp(-torch.exp(self.log_discharge))
        charge = torch.zeros_like(drive[:, 0]).unsqueeze(1)
        collected = []
        for current in drive.unbind(1):
            charge = keep * charge + current.unsqueeze(1)
            collected.append(torch.einsum("bmd,md->bd", charge, self.readout))
        y = torch.stack(collected, dim=1) + drive + self.feed * drive
        return (y * carrier) @ self.out, None, past_key_values
