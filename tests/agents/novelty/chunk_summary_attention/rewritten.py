"""We merge two partial attentions at different resolution through their log partition functions. The fine partial
attention is block diagonal. The coarse one lives on a quotient of the sequence, whose similarities are block
averages of the token similarities since averaging is linear, and is restricted to strictly earlier blocks. A
logistic function of the difference of log partitions decides between the results, which is exactly what a joint
normalisation would do if it were affordable. The quotient construction is, in our opinion, of independent
interest, and neither gates nor recurrent correction nor additional weights are introduced.
"""

import torch
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.fused = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def partial(self, logits, visible, values):
        floor = torch.full_like(logits, -1e9)
        logits = torch.where(visible, logits, floor)
        log_partition = logits.logsumexp(-1, keepdim=True)
        return torch.exp(logits - log_partition) @ values, log_partition

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
        q, k, v = rearrange(self.fused(hidden_states), "b t (n h d) -> n b h t d", n=3, h=self.num_heads)
        i = torch.arange(n, device=q.device)
        block = torch.div(i, 8, rounding_mode="floor")
        member = (block[:, None] == torch.arange((n + 7) // 8, device=q.device)).float() / 8
        logits = torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5
        inside = (block[:, None] == block[None, :]) & (i[None, :] <= i[:, None])
        fine, fine_log = self.partial(logits, inside, v)
        before = block[:, None] > torch.arange(member.shape[1], device=q.device)
        coarse, coarse_log = self.partial(logits @ member, before, member.T @ v)
        trust = torch.sigmoid(fine_log - coarse_log)
        o = coarse + trust * (fine - coarse)
        return self.out(rearrange(o, "b h t d -> b t (h d)")), None, past_key_values
