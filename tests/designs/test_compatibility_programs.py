"""A layer program in the published style, written here, runs unmodified at every length, with padding and a cache."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.designs.compatibility import Cache
from asiarch_hpc.designs.contract import load_class
from asiarch_hpc.training.backbone import build_model

LENGTHS = (1, 2, 63, 64, 65, 100, 257)

PROGRAM = '''# -*- coding: utf-8 -*-
"""Delta memory in chunks, mixed with a long convolution."""
from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Optional, Tuple

import torch
import torch.nn as nn
from einops import rearrange
from torch.nn import functional as F

from fla.layers.utils import get_unpad_data, index_first_axis, pad_input
from fla.modules import FusedRMSNormGated, RMSNorm, ShortConvolution
from fla.modules.l2norm import l2norm

if TYPE_CHECKING:
    from fla.models.utils import Cache
    from transformers.processing_utils import Unpack


@torch.compile
def chunked_memory(q, k, v, beta, chunk: int = 16):
    length = q.shape[2]
    rest = (chunk - length % chunk) % chunk
    q, k, v = (F.pad(x, (0, 0, 0, rest)) for x in (l2norm(q), l2norm(k), v))
    beta = F.pad(beta, (0, rest)).unsqueeze(-1)
    q, k, v, beta = (rearrange(x, "b h (n c) d -> n b h c d", c=chunk) for x in (q, k, v, beta))
    eye = torch.eye(chunk, dtype=q.dtype, device=q.device)
    inverse = torch.linalg.inv((eye + torch.tril(beta * k @ k.mT, -1)).float())CAST
    state, out = 0, []
    for n in range(len(q)):
        seen = k[n] @ state if n else 0
        new = inverse[n] @ (beta[n] * (v[n] - seen))
        out.append((q[n] @ state if n else 0) + torch.tril(q[n] @ k[n].mT) @ new)
        state = state + k[n].mT @ new
    return rearrange(torch.stack(out), "n b h c d -> b h (n c) d")[:, :, :length], state


class DeltaNet(nn.Module):
    def __init__(self, mode="chunk", d_model=None, hidden_size=64, expand_k=1.0, expand_v=1.0, num_heads=4,
                 use_beta=True, use_gate=True, use_short_conv=True, conv_size=4, conv_bias=False,
                 allow_neg_eigval=False, layer_idx=None, qk_activation="silu", qk_norm="l2", norm_eps=1e-5,
                 **kwargs: Dict) -> None:
        super().__init__()
        self.num_heads, self.layer_idx = num_heads, layer_idx
        self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(5)
        )
        self.b_proj = nn.Linear(hidden_size, num_heads)
        self.convs = nn.ModuleList(
            ShortConvolution(hidden_size=hidden_size, kernel_size=conv_size, activation="silu") for _ in range(3)
        )
        self.o_norm = FusedRMSNormGated(hidden_size // num_heads, eps=norm_eps)
        self.mix = nn.Parameter(torch.zeros(2))

    def forward(self, hidden_states: torch.Tensor, attention_mask: Optional[torch.Tensor] = None,
                past_key_values: Optional["Cache"] = None, use_cache: Optional[bool] = False,
                output_attentions: Optional[bool] = False, **kwargs: "Unpack[Dict]") -> Tuple:
        rows, length = hidden_states.shape[:2]
        offsets = None
        if attention_mask is not None:
            indices, offsets, _ = get_unpad_data(attention_mask[:, -length:])
            hidden_states = index_first_axis(rearrange(hidden_states, "b s d -> (b s) d"), indices).unsqueeze(0)
        old = past_key_values[self.layer_idx] if past_key_values is not None and len(past_key_values) else None
        states = old["conv_state"] if old is not None else [None] * 3
        done = [
            conv(proj(hidden_states), cache=state, output_final_state=use_cache, cu_seqlens=offsets)
            for conv, proj, state in zip(self.convs, (self.q_proj, self.k_proj, self.v_proj), states)
        ]
        q, k, v = (rearrange(x, "b l (h d) -> b h l d", h=self.num_heads) for x, _ in done)
        beta = rearrange(self.b_proj(hidden_states).sigmoid(), "b l h -> b h l")
        o, state = chunked_memory(q, k, v, beta)
        share = self.mix.softmax(0)
        o = rearrange(share[0] * o + share[1] * v, "b h l d -> b l h d")
        gate = rearrange(self.g_proj(hidden_states), "b l (h d) -> b l h d", h=self.num_heads)
        o = self.o_proj(rearrange(self.o_norm(o, gate), "b l h d -> b l (h d)"))
        if past_key_values is not None:
            past_key_values.update(
                recurrent_state=state, conv_state=[s for _, s in done], layer_idx=self.layer_idx, offset=length
            )
        if attention_mask is not None:
            o = pad_input(o.squeeze(0), indices, rows, length)
        return o, (share * share.log()).sum(), past_key_values
'''
SOFT, HARD = PROGRAM.replace("CAST", ".to(q.dtype)"), PROGRAM.replace("CAST", ".to(torch.bfloat16)")


def model(source: str) -> nn.Module:
    return build_model(source, vocab=32, scale=ScaleConfig(heads=4), dim=64, depth=2, seed=0)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_published_style_program_runs_and_trains_at_every_length(bf16: bool) -> None:
    network = model(SOFT)
    ids = torch.randint(0, 32, (2, max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        whole, auxiliary = network(ids)
        assert auxiliary.item() == pytest.approx(-2 * 0.6931, abs=0.02)  # ln 2 a layer
        for length in LENGTHS:
            network.zero_grad()
            logits, auxiliary = network(ids[:, :length])
            (logits.float().logsumexp(-1).mean() + auxiliary).backward()
            assert logits.shape == (2, length, 32)
            error = (logits - whole[:, :length]).detach().norm() / whole[:, :length].detach().norm()
            assert error < (0.03 if bf16 else 1e-5)
            missing = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
            assert missing == []


def test_a_hard_cast_works_in_the_precision_it_was_written_for() -> None:
    network, ids = model(HARD), torch.zeros(1, 40, dtype=torch.long)
    with pytest.raises(RuntimeError, match=r"dtype|scalar type"):
        network(ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(ids)[0].isfinite().all()


def test_padding_and_cache_reach_the_program() -> None:
    layer = load_class(SOFT)(hidden_size=64, num_heads=4, layer_idx=0)
    assert "transformers" not in vars(sys.modules[type(layer).__module__])
    x, mask = torch.randn(2, 9, 64), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    cache = Cache()
    o, _, returned = layer(x, attention_mask=mask, past_key_values=cache, use_cache=True)
    assert returned is cache
    assert cache.get_seq_length() == 9
    assert [tuple(state.shape) for state in cache[0]["conv_state"]] == [(2, 64, 4)] * 3
    assert not o[1, :4].any()
    torch.testing.assert_close(o[0], layer(x[:1])[0][0])
