"""We formulate sequence mixing as a bank of damped complex oscillators that are excited by tokens.
Excitations are complex amplitudes formed from activated projections; between tokens the bank
evolves freely under a diagonal complex propagator, with head-wise damping and mode-wise
frequency; and the response is the real part of the Hermitian product with a complex probe. The
oscillator picture replaces any explicit position encoding, as time is represented by the free
evolution itself. Oscillator banks of this form have been used for signals, but not with
token-dependent probes and excitations holding vector-valued amplitudes, and they require no
corrective updates.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.excite = nn.Parameter(torch.randn(hidden_size, 2 * hidden_size) / hidden_size**0.5)
        self.amplitude = nn.Linear(hidden_size, hidden_size, bias=False)
        self.damping = nn.Parameter(torch.linspace(1.0, 5.0, num_heads))
        self.respond = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        b, t, d = hidden_states.shape
        modes = d // self.num_heads // 2
        pair = (hidden_states @ self.excite).view(b, t, 2, self.num_heads, 2, modes)
        pair = pair / (1 + torch.exp(-pair))
        probe, excitation = torch.complex(pair[..., 0, :], pair[..., 1, :]).unbind(2)
        v = self.amplitude(hidden_states).view(b, t, self.num_heads, -1)
        frequency = torch.exp(torch.arange(modes, device=v.device) * (-torch.log(torch.tensor(100.0)) / modes))
        rotation = torch.polar(torch.ones_like(frequency), frequency)
        propagator = (torch.sigmoid(self.damping)[:, None] * rotation)[..., None]
        excitation = excitation.conj()
        bank = torch.zeros_like(excitation[:, 0, :, :, None] * v[:, 0, :, None, :])
        response = []
        for i in range(t):
            bank = propagator * bank + excitation[:, i, :, :, None] * v[:, i, :, None, :]
            response.append((probe[:, i].unsqueeze(-1) * bank).sum(-2).real)
        o = torch.stack(response, dim=1) / (2 * modes) ** 0.5
        return self.respond(o.reshape(b, t, d)), None, past_key_values
