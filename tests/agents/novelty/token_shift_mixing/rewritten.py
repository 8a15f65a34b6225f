"""We equip retention with a discrete derivative operator. Every stream receives the token plus a learned multiple of
its backward difference, so that channels can respond to change rather than to level, as in proportional-derivative
control. The difference is computed once and shared by three controllers with separate gains; after control, a
single block of weights yields all streams. The plant is an exponentially forgetting associative state simulated
step by step, with a bank of prescribed pole locations, and its response is standardised head by head. Control
replaces both the convolutional front end and the corrective write of prior fast-weight layers.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.gains = nn.Parameter(torch.tensor([-0.1, -0.5, -0.3])[:, None].repeat(1, hidden_size))
        self.weight = nn.Parameter(torch.randn(3, hidden_size, hidden_size) / hidden_size**0.5)
        self.gamma = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.poles = [1 - 2.0 ** -(3 + i) for i in range(num_heads)]

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        x = hidden_states
        difference = x - F.pad(x, (0, 0, 1, 0))[:, :-1]
        controlled = x.unsqueeze(2) + difference.unsqueeze(2) * self.gains
        q, k, v = torch.einsum("btnd,ned->nbte", controlled, self.weight).unflatten(-1, (self.num_heads, -1))
        poles = torch.tensor(self.poles, device=x.device, dtype=x.dtype)[:, None, None]
        plant, response = torch.zeros((), device=x.device), []
        for i in range(x.shape[1]):
            plant = poles * plant + k[:, i, :, :, None] * v[:, i, :, None, :]
            response.append(torch.matmul(q[:, i, :, None], plant).squeeze(-2))
        o = torch.stack(response, dim=1) / q.shape[-1] ** 0.5
        variance, mean = torch.var_mean(o, dim=-1, keepdim=True, unbiased=False)
        o = ((o - mean) / (variance + 1e-5).sqrt()).flatten(2)
        return self.out(o * (1 + self.gamma) + self.bias), None, past_key_values
