"""We introduce damped trigonometric kernels for causal mixing. The kernel of each
channel is a decaying envelope times a linear combination of cosine and sine of the
lag, with trainable envelope, frequency and combination weights; it is evaluated on
all lags and arranged as a lower triangular Toeplitz operator. No state is ever
materialised. Inputs are pre-scaled by the square root of the energy of the envelope,
an analytical form of normalisation. A sigmoid-weighted branch restores content
dependence. Trigonometric kernels are interpretable as learned periodicities, which
sets them apart from recurrent, complex-valued or associative mechanisms.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.branches = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.envelope = nn.Parameter(torch.linspace(-5.0, 0.0, hidden_size))
        self.frequency = nn.Parameter(torch.rand(hidden_size) * 3.14)
        self.combination = nn.Parameter(torch.stack([torch.zeros(hidden_size), torch.zeros(hidden_size)]))
        self.out = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size**0.5)

    def kernel(self, n):
        i = torch.arange(n, device=self.envelope.device)
        lag = (i[:, None] - i[None, :]).unsqueeze(-1)
        angle = lag * self.frequency
        wave = (1 + self.combination[0]) * angle.cos() + self.combination[1] * angle.sin()
        envelope = torch.exp(-lag.clamp_min(0) * self.envelope.exp())
        return wave * envelope * (lag >= 0)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        signal, branch = self.branches(hidden_states).chunk(2, dim=-1)
        energy = -torch.expm1(-2 * self.envelope.exp())
        mixed = torch.einsum("tsd,bsd->btd", self.kernel(signal.shape[1]), signal * energy.sqrt())
        return torch.einsum("btd,de->bte", mixed * branch * branch.sigmoid(), self.out), None, past_key_values
