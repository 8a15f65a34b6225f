"""We propose complementary learning systems for token mixing, modelled on the division
of labour between hippocampus and neocortex. A volatile hippocampal trace and a
consolidated neocortical trace are written simultaneously from identical experience;
at recall, an attentional arbitration signal computed by the present token
interpolates between episodic and semantic evidence. The persistence of either trace
is a trainable trait of every module. To our knowledge this is the first fast-weight
architecture in which consolidation and arbitration are decoupled in this manner,
providing graded access to experience across qualitatively distinct regimes of
retention without any corrective plasticity whatsoever.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.modules_count = num_heads
        self.neocortex = nn.Parameter(torch.full((num_heads,), 4.0))
        self.hippocampus = nn.Parameter(torch.full((num_heads,), 0.5))
        self.arbiter = nn.Linear(hidden_size, num_heads)
        self.efferent = nn.Linear(hidden_size, hidden_size, bias=False)
        self.experience = nn.Linear(hidden_size, hidden_size, bias=False)
        self.engram = nn.Linear(hidden_size, hidden_size, bias=False)
        self.recall_cue = nn.Linear(hidden_size, hidden_size, bias=False)

    def split(self, x):
        return x.view(*x.shape[:2], self.modules_count, -1).transpose(1, 2)

    def recollect(self, cue, engram, experience, persistence):
        moment = torch.arange(cue.shape[2], device=cue.device)
        elapsed = moment[:, None] - moment[None, :]
        retention = (elapsed * persistence[:, None, None]).exp() * (elapsed >= 0)
        return (cue @ engram.transpose(-1, -2) * retention) @ experience

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        arbitration = torch.sigmoid(self.arbiter(hidden_states)).transpose(1, 2).unsqueeze(-1)
        experience = self.split(self.experience(hidden_states))
        engram = F.normalize(self.split(self.engram(hidden_states)), dim=-1)
        cue = F.normalize(self.split(self.recall_cue(hidden_states)), dim=-1)
        semantic = self.recollect(cue, engram, experience, F.logsigmoid(self.neocortex))
        episodic = self.recollect(cue, engram, experience, F.logsigmoid(self.hippocampus))
        verdict = (1 - arbitration) * semantic + arbitration * episodic
        return self.efferent(verdict.transpose(1, 2).reshape(hidden_states.shape)), None, past_key_values
