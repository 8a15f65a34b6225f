"""Small layer programs for the checks of masks, packing and caches."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.gate import static
from asiarch_hpc.gate.checks.subject import Specimen, Step
from asiarch_hpc.records import Finding
from asiarch_hpc.training.backbone import build_model
from tests.gate.toys import builder, specimen_of

_SCALE = ScaleConfig(heads=2)

# A causal convolution over three tokens; `_conv` also takes and returns the last inputs.
_FRAME = """
import torch
import torch.nn.functional as F
from torch import nn

class DeltaNet(nn.Module):
    {claims}

    def __init__(self, hidden_size=8, num_heads=2, layer_idx=0, d_model=None, mode="chunk", expand_k=1.0, expand_v=1.0,
                 use_beta=True, use_gate=False, use_short_conv=True, conv_size=4, conv_bias=False,
                 allow_neg_eigval=False, qk_activation="silu", qk_norm="l2", norm_eps=1e-5, **kwargs):
        super().__init__()
        self.layer_idx = layer_idx
        self.conv = nn.Conv1d(hidden_size, hidden_size, 3, groups=hidden_size)

    def _conv(self, x, before=None):
        before = torch.zeros_like(x[:, :1]).expand(-1, 2, -1) if before is None else before
        x = torch.cat([before, x], 1)
        return self.conv(x.mT).mT, x[:, -2:]

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False,
                output_attentions=False, {extra}**kwargs):
        x = hidden_states
{body}
        return y, None, past_key_values
"""


def program(body: str, *, claims: tuple[str, ...] = (), extra: str = "") -> str:
    """A layer program; `body` are statements from `x` [batch, length, dim] to `y`."""
    body = textwrap.indent(textwrap.dedent(body), " " * 8)
    return _FRAME.format(body=body, claims=f"CLAIMS = {claims!r}", extra=extra)


def program_specimen(source: str, **subject: Any) -> Specimen:
    def build(dim: int, depth: int, vocab: int) -> nn.Module:
        return build_model(source, vocab=vocab, scale=_SCALE, dim=dim, depth=depth, seed=0)

    return specimen_of(build, claims=static.claims(source), **subject)


def design_specimen(source: str, **subject: Any) -> Specimen:
    """A specimen of a toy design's source."""
    return specimen_of(builder(source), **({"chunks": static.chunk_sizes(source)} | subject))


def found(check: Callable[[Specimen], Iterator[Step]], specimen: Specimen) -> list[Finding]:
    """All findings of one check, its collected failures included."""
    return [*(step for step in check(specimen) if isinstance(step, Finding)), *specimen.failures.findings()]
