"""We cast token mixing as hierarchical soft quantisation. A codebook is estimated causally by
responsibility-weighted means, and the prefix is then replaced with the codebook when it comes to
similarity search. Rather than carrying the codebook through time, we exploit that means and
similarity are both linear in the tokens: one normalised assignment matrix between positions and
codes serves to average token-to-token similarities and, transposed, to spread code probabilities
back over tokens. The formulation needs matrix products only and makes explicit that quantised
attention is a structured re-weighting of tokens, which differs fundamentally from delta-rule
editing."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.num_heads, self.codes = num_heads, 8
        self.inputs = nn.Linear(hidden_size, hidden_size * 3 + num_heads * self.codes, bias=False)
        self.assign_bias = nn.Parameter(torch.zeros(num_heads * self.codes))
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
        d, n = hidden_states.shape[-1], hidden_states.shape[1]
        *qkv, logits = self.inputs(hidden_states).split([d, d, d, self.num_heads * self.codes], dim=-1)
        q, k, v = (rearrange(x, "b t (h d) -> b h t d", h=self.num_heads) for x in qkv)
        logits = rearrange(logits + self.assign_bias, "b t (h s) -> b h s t", h=self.num_heads)
        share = torch.exp(logits - torch.logsumexp(logits, dim=2, keepdim=True))
        lower = torch.ones(n, n, device=q.device).tril()
        mass = share @ lower.T + 1e-6
        assignment = share.unsqueeze(-2) * lower / mass.unsqueeze(-1)
        similarity = q @ k.mT / q.shape[-1] ** 0.5
        codes = torch.einsum("bhts,bhmts->bhtm", similarity, assignment)
        spread = torch.einsum("bhtm,bhmts->bhts", F.softmax(codes, dim=-1), assignment)
        return rearrange(spread @ v, "b h t d -> b t (h d)") @ self.out, None, past_key_values
