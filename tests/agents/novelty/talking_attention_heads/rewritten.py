"""We introduce shared-subspace metric attention. All matching takes place in a single full-width
space, where each pattern has its own diagonal metric that is constant on blocks of coordinates;
there are as many patterns as blocks. Patterns are normalised and then every output block
receives a signed combination of pattern averages of its own content. Thinking in terms of
metrics removes the restriction of matching to private subspaces, which all multi-head layers
inherited without justification. The number of additional parameters is quadratic in the number
of blocks only, and no state, correction or decay is used.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.blocks = num_heads
        self.space = nn.Parameter(torch.randn(2, hidden_size, hidden_size) / hidden_size**0.5)
        self.content = nn.Linear(hidden_size, hidden_size, bias=False)
        self.metric = nn.Parameter(torch.zeros(num_heads, num_heads))
        self.combine = nn.Linear(num_heads, num_heads, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        d, n = hidden_states.shape[-1], hidden_states.shape[1]
        width = d // self.blocks
        q, k = torch.einsum("btd,nde->nbte", hidden_states, self.space)
        metric = self.metric + torch.eye(self.blocks, device=q.device)
        metric = metric.repeat_interleave(width, dim=1) / width**0.5
        energy = torch.matmul(q.unsqueeze(1) * metric[:, None, :], k.unsqueeze(1).mT)
        energy = energy + torch.full((n, n), float("-inf"), device=q.device).triu(1)
        pattern = torch.exp(energy - energy.logsumexp(-1, keepdim=True))
        averages = torch.einsum("bpts,bsd->btdp", pattern, self.content(hidden_states))
        combined = self.combine(averages).unflatten(2, (self.blocks, width))
        o = torch.diagonal(combined, dim1=2, dim2=4).transpose(2, 3)
        return self.out(o.reshape(hidden_states.shape)), None, past_key_values
