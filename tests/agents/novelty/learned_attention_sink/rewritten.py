"""We introduce partition-aware attention, where the ordinary attention output is multiplied by a reliability between
zero and one computed from its own partition function. Reliability is the logistic function of the log partition
function relative to a trained threshold of the head, so heads are trusted if the total similarity mass exceeds the
threshold. The partition function is a by-product of any attention kernel that works blockwise, thus reliability is
free. To our knowledge the partition function has been discarded by all prior token mixers, be it attention or
fast-weight memories, although it is informative about novelty.
"""

import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.threshold = nn.Parameter(torch.zeros(1, 1, num_heads))
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
        q = self.query(hidden_states).unflatten(-1, (self.num_heads, -1))
        k, v = self.key_value(hidden_states).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        similarity = torch.einsum("bthd,bshd->btsh", q, k) / q.shape[-1] ** 0.5
        block = torch.full((n, n), float("-inf"), device=q.device).triu(1)
        similarity = similarity + block.unsqueeze(-1)
        log_partition = torch.logsumexp(similarity, dim=2)
        attention = torch.exp(similarity - log_partition.unsqueeze(2))
        plain = torch.einsum("btsh,bshd->bthd", attention, v)
        reliability = torch.sigmoid(log_partition - self.threshold)
        o = plain * reliability.unsqueeze(-1)
        return self.out(o.flatten(2)), None, past_key_values
