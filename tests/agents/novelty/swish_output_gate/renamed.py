"""Evidence arbitration by multiplicative veto. Editable associative archives answer each inquiry with a
dossier whose scale reflects archive occupancy instead of relevance. We first project the dossier of every
department on a sphere of constant radius, with a trainable anisotropy, and subsequently subject it to a
veto field synthesised from the inquirer. The veto field is non-monotone and self-gated, which allows
slightly negative responses and thereby richer dynamics than logistic vetoes. Archives continue to be
edited according to prediction residuals under learned urgency. This is, we believe, the first treatment of
relevance as a property of the inquirer rather than of the archive."""

import torch
import torch.nn.functional as F
from torch import nn

from kernels.delta_rule import delta_rule


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=1024, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.departments = num_heads
        self.pages = hidden_size // num_heads
        self.anisotropy = nn.Parameter(torch.ones(self.pages))
        self.publish = nn.Linear(hidden_size, hidden_size, bias=False)
        self.urgency = nn.Linear(hidden_size, num_heads, bias=False)
        self.veto = nn.Linear(hidden_size, hidden_size, bias=False)
        self.document = nn.Linear(hidden_size, hidden_size, bias=False)
        self.title = nn.Linear(hidden_size, hidden_size, bias=False)
        self.inquiry = nn.Linear(hidden_size, hidden_size, bias=False)

    def file(self, sheet):
        return F.silu(sheet).view(*sheet.shape[:2], self.departments, self.pages)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        # the veto does not look at the archive
        field = F.silu(self.veto(hidden_states))
        urgency = torch.sigmoid(self.urgency(hidden_states))
        document = self.file(self.document(hidden_states))
        title = F.normalize(self.file(self.title(hidden_states)), dim=-1)
        inquiry = F.normalize(self.file(self.inquiry(hidden_states)), dim=-1)
        dossier, _ = delta_rule(inquiry, title, document, urgency)
        radius = torch.rsqrt(dossier.pow(2).mean(-1, keepdim=True) + 1e-5)
        dossier = (dossier * radius * self.anisotropy).reshape(hidden_states.shape)
        return self.publish(dossier * field), None, past_key_values
