"""DeltaNet (arXiv 2406.06484): linear attention whose memory replaces what it stored under a key.

A row's padding may stand anywhere: tokens are moved to the row's end, so rows never share a memory and padding
never enters one. Nor do the documents of a row share one, where a caller says which they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from fla.modules import FusedRMSNormGated, RMSNorm, ShortConvolution  # type: ignore[import-not-found, unused-ignore]
from fla.modules.l2norm import l2norm  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor, nn

from kernels.delta_rule import delta_rule
from kernels.short_convolution import short_convolution

if TYPE_CHECKING:
    from fla.models.utils import Cache  # type: ignore[import-not-found, unused-ignore]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "elu": lambda x: F.elu(x) + 1,
    "identity": lambda x: x,
}


class DeltaNet(nn.Module):
    """Queries and keys of unit length; the strength of each replacement comes from the token."""

    def __init__(
        self,
        mode: str = "chunk",
        d_model: int | None = None,
        hidden_size: int = 1024,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        num_heads: int = 4,
        use_beta: bool = True,
        use_gate: bool = False,
        use_short_conv: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        allow_neg_eigval: bool = False,
        layer_idx: int | None = None,
        qk_activation: str = "silu",
        qk_norm: str = "l2",
        norm_eps: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        width = hidden_size if d_model is None else d_model
        head_k, head_v = round(width * expand_k / num_heads), round(width * expand_v / num_heads)
        if head_k < 1 or head_v < 1:
            raise ValueError(f"hidden_size={width} leaves nothing for {num_heads} heads")
        key_dim, value_dim = num_heads * head_k, num_heads * head_v
        if mode != "chunk":
            raise ValueError(f"mode={mode!r}: expected 'chunk'")
        if qk_activation not in ACTIVATIONS:
            raise ValueError(f"qk_activation={qk_activation!r}: expected one of {sorted(ACTIVATIONS)}")
        if qk_norm not in ("l2", "sum") or (qk_norm == "sum" and qk_activation not in ("relu", "elu")):
            raise ValueError(f"qk_norm={qk_norm!r}: expected 'l2', or 'sum' with an activation that is not negative")
        self.num_heads = num_heads
        self.use_beta = use_beta
        self.use_gate = use_gate
        self.use_short_conv = use_short_conv
        self.allow_neg_eigval = allow_neg_eigval
        self.layer_idx = layer_idx
        self.qk_activation = qk_activation
        self.qk_norm = qk_norm
        self.q_proj = nn.Linear(width, key_dim, bias=False)
        self.k_proj = nn.Linear(width, key_dim, bias=False)
        self.v_proj = nn.Linear(width, value_dim, bias=False)
        if use_beta:
            self.b_proj = nn.Linear(width, num_heads, bias=False)
        if use_short_conv:
            self.q_conv1d = ShortConvolution(key_dim, conv_size, bias=conv_bias, activation=None)
            self.k_conv1d = ShortConvolution(key_dim, conv_size, bias=conv_bias, activation=None)
            self.v_conv1d = ShortConvolution(value_dim, conv_size, bias=conv_bias, activation=None)
        if use_gate:
            self.g_proj = nn.Linear(width, value_dim, bias=False)
            self.o_norm = FusedRMSNormGated(head_v, eps=norm_eps)
        else:
            self.o_norm = RMSNorm(head_v, eps=norm_eps)
        self.o_proj = nn.Linear(value_dim, width, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        documents: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Cache | None]:
        """hidden_states [batch, length, hidden_size]; attention_mask [batch, length], 0 for padding; documents
        [batch, length] integers, which of its row's documents a token is of, not together with a cache."""
        length = hidden_states.shape[1]
        if documents is not None and (use_cache or past_key_values is not None):
            raise ValueError("documents together with a cache: expected one of them")
        tokens = order = None
        if attention_mask is not None:
            tokens = attention_mask[:, -length:] != 0
            order = tokens.long().argsort(dim=1, stable=True).unsqueeze(-1)  # padding first, then the tokens
            hidden_states = hidden_states.masked_fill(~tokens.unsqueeze(-1), 0).take_along_dim(order, 1)
            if documents is not None:
                documents = documents.masked_fill(~tokens, -1).take_along_dim(order.squeeze(-1), 1)
            tokens = tokens.take_along_dim(order.squeeze(-1), 1)
        state = self._state(past_key_values)
        if state and tokens is not None and not bool(tokens.all()):
            raise ValueError("padding inside a continuation: continue all rows by the same number of tokens")

        q, k, v, conv_state = self._project(hidden_states, state.get("conv_state"), bool(use_cache), documents)
        beta = torch.ones_like(q[..., 0]) if not self.use_beta else self.b_proj(hidden_states).sigmoid()
        if self.allow_neg_eigval:
            beta = beta * 2
        if tokens is not None:
            beta = beta * tokens.unsqueeze(-1)
        o, memory = delta_rule(q, k, v, beta, initial_state=state.get("recurrent_state"), documents=documents)
        if past_key_values is not None and use_cache:
            past_key_values.update(
                recurrent_state=memory, conv_state=conv_state, layer_idx=self.layer_idx, offset=length
            )
        o = self.o_norm(o, self.g_proj(hidden_states).view_as(o)) if self.use_gate else self.o_norm(o)
        o = self.o_proj(o.flatten(2))
        if tokens is not None and order is not None:
            o = torch.zeros_like(o).scatter(1, order.expand_as(o), o.masked_fill(~tokens.unsqueeze(-1), 0))
        return o, None, past_key_values

    def _state(self, cache: Cache | None) -> dict[str, Any]:
        if cache is None:
            return {}
        if self.layer_idx is None:
            raise ValueError("past_key_values needs a layer_idx to find this layer's state")
        return cache[self.layer_idx] if len(cache) > self.layer_idx else {}

    def _project(
        self, x: Tensor, conv_state: tuple[Tensor, ...] | None, keep: bool, documents: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...] | None]:
        """Queries, keys and values [batch, length, heads, n], and the state of the convolutions."""
        streams = [self.q_proj(x), self.k_proj(x), self.v_proj(x)]
        convolutions = (self.q_conv1d, self.k_conv1d, self.v_conv1d) if self.use_short_conv else ()
        if convolutions and documents is not None:
            # By the operation, since flash-linear-attention's module, of the same weights, takes no documents.
            streams = [
                short_convolution(s, c.weight.squeeze(1), c.bias, documents=documents)
                for s, c in zip(streams, convolutions, strict=True)
            ]
        elif convolutions:
            old = conv_state or (None, None, None)
            done = [
                convolve(s, cache=c, output_final_state=keep)
                for convolve, s, c in zip(convolutions, streams, old, strict=True)
            ]
            streams, conv_state = [s for s, _ in done], tuple(c for _, c in done)
        q, k, v = (s.view(*s.shape[:2], self.num_heads, -1) for s in streams)
        q, k, v = ACTIVATIONS[self.qk_activation](q), ACTIVATIONS[self.qk_activation](k), F.silu(v)
        if self.qk_norm == "l2":
            return l2norm(q), l2norm(k), v, conv_state
        return q / q.sum(-1, keepdim=True).clamp_min(1e-6), k / k.sum(-1, keepdim=True).clamp_min(1e-6), v, conv_state
