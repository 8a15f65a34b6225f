"""Facts have to be chained: who is the boss of the author of this book? A recurrent store that is consulted
only once leaves the chaining to depth. In our layer the first answer modifies the question, through a
small trained map in every head, and the store is asked again before anything leaves the layer; a trained
portion of the first answer comes along. Storage is the simplest conceivable, a sum of outer products which
fades at a trained pace. Since both consultations use the same store, the extra cost lies in reading alone."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.h = num_heads
        head = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.rephrase = nn.Parameter(torch.randn(num_heads, head, head) / head**0.5)
        self.portion = nn.Parameter(torch.full((num_heads, 1, 1), 1.0))
        self.pace = nn.Parameter(torch.full((num_heads,), 3.0))
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
        n = hidden_states.shape[1]
        q, k, v = rearrange(self.qkv(hidden_states), "b t (n h d) -> n b h t d", n=3, h=self.h)
        q, k = F.normalize(F.silu(q), dim=-1), F.normalize(F.silu(k), dim=-1)
        i = torch.arange(n, device=q.device)
        age = (i[:, None] - i).clamp_min(0)
        fade = (self.pace.sigmoid()[:, None, None] ** age).tril()

        def consult(question):
            return (torch.einsum("bhtd,bhsd->bhts", question, k) * fade) @ v

        answer = consult(q)
        question = F.normalize(q + answer @ self.rephrase, dim=-1, eps=1e-3)
        o = consult(question) + self.portion * answer
        return self.out(rearrange(o, "b h t d -> b t (h d)")), None, past_key_values
