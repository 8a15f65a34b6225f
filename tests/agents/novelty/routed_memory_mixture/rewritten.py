"""We construct tensor-product keys from two factors, a semantic factor and a categorical factor obtained as a
probability vector, and store values under the product in one enlarged associative matrix. The categorical factor
additionally sets a multiplicative retention for each row block of the matrix. Since queries are built with the
same categorical factor, similarity factorises into semantic similarity times categorical agreement. Tensor-product
keys are reminiscent of role-filler binding, but have not been used to partition a recurrent memory softly. As a
by-product the layer makes delta updates dispensable, because product keys of different categories are close to
orthogonal.
"""

import torch
from torch import nn


def outer(a, b):
    return (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2)


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads, self.categories = num_heads, 4
        self.semantic = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.categorical = nn.Parameter(torch.randn(hidden_size, num_heads, 4) / hidden_size**0.5)
        self.fade = nn.Parameter(torch.full((num_heads, 1), -2.0))
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
        q, k, v = self.semantic(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q = q / q.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        k = k / k.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        logits = torch.einsum("btd,dhn->bthn", hidden_states, self.categorical)
        category = (logits - logits.logsumexp(-1, keepdim=True)).exp()
        retention = 1 - category * (1 + torch.tanh(self.fade / 2)) / 2
        retention = retention.repeat_interleave(q.shape[-1], dim=-1).unsqueeze(-1)
        q, k = outer(category, q), outer(category, k)
        memory, reads = 0.0, []
        for t in range(q.shape[1]):
            memory = retention[:, t] * memory + k[:, t, :, :, None] * v[:, t, :, None, :]
            reads.append((q[:, t].unsqueeze(-2) @ memory).squeeze(-2))
        return self.out(torch.stack(reads, dim=1).flatten(2)), None, past_key_values
