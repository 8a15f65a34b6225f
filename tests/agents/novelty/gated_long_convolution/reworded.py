"""How far can one go without any matrix-valued state? Each feature here owns a single
impulse response that covers the whole history, built from a small number of decaying
curves with trained amplitude and speed. The signal entering the response is the
product of two projections of the word, the signal leaving it is scaled by a third,
which restores the input dependence that a plain filter lacks. An identity path with
trained strength bypasses the response. Compared with key-value stores the arithmetic
is much lighter and length costs only n log n.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.inputs = nn.ModuleList([nn.Linear(hidden_size, hidden_size) for _ in range(3)])
        self.speed = nn.Parameter(torch.linspace(-6.0, 1.0, 6).repeat(hidden_size, 1))
        self.amplitude = nn.Parameter(torch.randn(hidden_size, 6) / 6**0.5)
        self.bypass = nn.Parameter(torch.ones(hidden_size))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n = hidden_states.shape[1]
        gate, a, b = (f(hidden_states) for f in self.inputs)
        age = torch.arange(n, device=gate.device).float()
        response = torch.einsum("dm,dmt->td", self.amplitude, torch.exp(-self.speed.exp()[..., None] * age))
        signal = a * b
        size = 1 << (2 * n - 1).bit_length()
        transformed = torch.fft.rfft(signal, n=size, dim=1) * torch.fft.rfft(response, n=size, dim=0)
        filtered = torch.fft.irfft(transformed, n=size, dim=1)[:, :n]
        return self.out(gate * (filtered + self.bypass * signal)), None, past_key_values
