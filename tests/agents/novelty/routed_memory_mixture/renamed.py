"""Polyphonic engrams: memory is scored for an ensemble in which every section contains several voices, and a
conductor cues the voices for entry and for listening with one and the same gesture. A voice tires only
while it sings, giving rise to selective fatigue, a novel regulariser for associative computation which, as
opposed to global damping or error feedback, protects silent material indefinitely. The conductor is
differentiable and follows the present symbol. Thus themes are separated into voices without supervision,
and the superposition catastrophe of monophonic fast weights is averted by orchestration rather than by
correction.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 4, layer_idx: int | None = None, **kwargs):
        super().__init__()
        self.voices = 4
        self.sections = num_heads
        self.performance = nn.Linear(hidden_size, hidden_size, bias=False)
        self.fatigue = nn.Parameter(torch.full((num_heads,), -2.0))
        self.conductor = nn.Linear(hidden_size, num_heads * self.voices, bias=False)
        self.tone = nn.Linear(hidden_size, hidden_size, bias=False)
        self.pitch = nn.Linear(hidden_size, hidden_size, bias=False)
        self.ear = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        past_key_values=None,
        use_cache=False,
        output_attentions=False,
        **kwargs,
    ):
        n, m, c = hidden_states.shape
        gesture = self.conductor(hidden_states).view(n, m, self.sections, self.voices).softmax(-1)
        rest = 1 - gesture * torch.sigmoid(self.fatigue).view(-1, 1)
        tone = self.tone(hidden_states).view(n, m, self.sections, -1)
        pitch = F.normalize(self.pitch(hidden_states).view(n, m, self.sections, -1), dim=-1)
        ear = F.normalize(self.ear(hidden_states).view(n, m, self.sections, -1), dim=-1)
        score = tone.new_zeros(n, self.sections, self.voices, pitch.shape[-1], tone.shape[-1])
        heard = []
        for bar in range(m):
            cue = gesture[:, bar]
            score = score * rest[:, bar, :, :, None, None]
            score = score + torch.einsum("bhn,bhk,bhv->bhnkv", cue, pitch[:, bar], tone[:, bar])
            heard.append(torch.einsum("bhn,bhk,bhnkv->bhv", cue, ear[:, bar], score))
        return self.performance(torch.stack(heard, 1).reshape(n, m, c)), None, past_key_values
