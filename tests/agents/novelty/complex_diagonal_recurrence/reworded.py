"""Numbers that shrink cannot count; numbers that turn can. In this layer each feature holds a point in the plane
which is rotated by its own trained angle and pulled inward by its own trained factor once per word, after a
projected input has been added along one axis. Inputs are shrunk in accordance with the pull so that slow points do
not blow up. Two trained coefficients flatten the point into a single number again, and the word scales it by a
smooth switch. Lists, brackets and metre are examples where turning helps, and no key-value matrix is involved.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.push = nn.Linear(hidden_size, hidden_size, bias=False)
        self.switch = nn.Linear(hidden_size, hidden_size, bias=False)
        self.pull = nn.Parameter(torch.linspace(-4.0, 1.0, hidden_size))
        self.angle = nn.Parameter(torch.rand(hidden_size) * 1.57)
        self.flatten_x = nn.Parameter(torch.ones(hidden_size))
        self.flatten_y = nn.Parameter(torch.zeros(hidden_size))
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
        age = torch.arange(n, device=hidden_states.device)[:, None]
        decay = torch.exp(-age * self.pull.exp())
        response = decay * (self.flatten_x * torch.cos(age * self.angle) + self.flatten_y * torch.sin(age * self.angle))
        push = self.push(hidden_states) * (1 - torch.exp(-2 * self.pull.exp())).sqrt()
        spectrum = torch.fft.rfft(push, n=2 * n, dim=1) * torch.fft.rfft(response, n=2 * n, dim=0)
        point = torch.fft.irfft(spectrum, n=2 * n, dim=1)[:, :n]
        return self.out(point * torch.sigmoid(self.switch(hidden_states))), None, past_key_values
