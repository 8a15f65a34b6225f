"""The names of the `fla` package that published layer programs import, in plain PyTorch, for any device.

Parameters have the names, shapes and initial values of flash-linear-attention 0.6, so weights can move
between the two. The stand-ins are handed to a design through its own `__import__`: `sys.modules` never holds a
false `fla`, other code does not see one, and imports that a design makes later, inside a function, work too.
On CUDA a name comes from the installed package where it has it, at the place that the design imports it from or at
one that it has moved to since.
"""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.rms_norm import gated_rms_norm, rms_norm
from kernels.short_convolution import short_convolution


def design_builtins(device: str) -> dict[str, Any]:
    """Builtins for a design's module, with an `import` that knows the `fla` names.

    `device` is the type of device the design will run on; on "cuda" an installed flash-linear-attention comes first.
    """
    return {**vars(builtins), "__import__": partial(_import, device == "cuda")}


def l2norm(x: Tensor, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> Tensor:
    """Divides the last dimension by its length: x / sqrt(sum(x²) + eps), computed in at least float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * (wide.square().sum(-1, keepdim=True) + eps).rsqrt()).to(output_dtype or x.dtype)


class L2Norm(nn.Module):
    """`l2norm` as a module."""

    def __init__(self, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.output_dtype = output_dtype

    def forward(self, x: Tensor) -> Tensor:
        return l2norm(x, self.eps, self.output_dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in at least float32.

    With `residual`, the sum of both inputs is normed; with `prenorm`, that sum is returned too.
    """

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.elementwise_affine = elementwise_affine
        self.eps = eps
        ones = torch.ones(hidden_size, device=device, dtype=dtype)
        self.weight = nn.Parameter(ones) if elementwise_affine else None
        self.bias = nn.Parameter(torch.zeros_like(ones)) if elementwise_affine and bias else None

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        total = x if residual is None else x + residual
        wide = total if self.bias is None else total.to(torch.promote_types(total.dtype, torch.float32))
        normed = rms_norm(wide, self.weight, eps=self.eps) if total.numel() else total
        if self.bias is not None:
            normed = normed + self.bias
        return (normed.to(x.dtype), total.float() if residual_in_fp32 else total) if prenorm else normed.to(x.dtype)


class FusedRMSNormGated(RMSNorm):
    """Root-mean-square norm times an activated gate: norm(x) * activation(g)."""

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        activation: str = "swish",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, eps=eps, device=device, dtype=dtype)
        if activation not in _GATES:
            raise ValueError(f"activation={activation!r}: expected one of {sorted(_GATES)}")
        self.activation = activation

    def forward(  # type: ignore[override]  # fla's signature
        self,
        x: Tensor,
        g: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        total = x if residual is None else x + residual
        gated, gate = total, g.expand_as(total)
        if total.numel():
            gated = gated_rms_norm(total, gate, self.weight, eps=self.eps, activation=_GATES[self.activation])
        gated = gated.to(x.dtype)
        return (gated, total.float() if residual_in_fp32 else total) if prenorm else gated


_GATES: Mapping[str, Literal["silu", "sigmoid"]] = {"swish": "silu", "silu": "silu", "sigmoid": "sigmoid"}


class ShortConvolution(nn.Conv1d):
    """Causal depthwise convolution over a few tokens, with state for decoding token by token.

    `forward(x [batch, length, channels])` returns the output of the same shape and, with `output_final_state`,
    the last `kernel_size` inputs `[sequences, channels, kernel_size]`, to be given as `cache` to the next call.
    With `cu_seqlens` (offsets `[sequences + 1]`, batch 1) the sequences of a row do not see each other.
    """

    def __init__(
        self,
        hidden_size: int,
        kernel_size: int = 4,
        bias: bool = False,
        activation: str | None = "silu",
        backend: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            hidden_size, hidden_size, kernel_size, groups=hidden_size, bias=bias, device=device, dtype=dtype
        )
        if activation not in (None, "silu", "swish"):
            raise ValueError(f"activation={activation!r}: expected None, 'silu' or 'swish'")
        self.hidden_size = hidden_size
        self.activation = activation

    def forward(  # type: ignore[override]  # fla's signature
        self,
        x: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if mask is not None:
            x = x * mask.unsqueeze(-1).to(x.dtype)
        if cu_seqlens is None:
            inputs = _after(cache, x)
            y = self._convolve(inputs, x.shape[1])
            state = self._state(inputs) if output_final_state else None
        else:
            lengths = cu_seqlens.diff().tolist()
            states = [None] * len(lengths) if cache is None else torch.split(cache, 1)
            parts = [_after(*part) for part in zip(states, torch.split(x, lengths, dim=1), strict=True)]
            y = torch.cat([self._convolve(*part) for part in zip(parts, lengths, strict=True)], dim=1)
            state = torch.cat([self._state(part) for part in parts]) if output_final_state else None
        if residual is not None:
            y = y + residual
        return y, state

    def _convolve(self, inputs: Tensor, length: int) -> Tensor:
        """Output of the last `length` inputs."""
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        weight = self.weight.squeeze(1).to(inputs.dtype)
        y = short_convolution(inputs, weight, bias, "silu" if self.activation else None)
        # A slice of everything would copy its gradient.
        return y if length == y.shape[1] else y[:, y.shape[1] - length :]

    def _state(self, inputs: Tensor) -> Tensor:
        """The last `kernel_size` inputs: [sequences, channels, kernel_size]."""
        width = self.kernel_size[0]
        return F.pad(inputs, (0, 0, max(0, width - inputs.shape[1]), 0))[:, -width:].transpose(1, 2)


def _after(cache: Tensor | None, x: Tensor) -> Tensor:
    """`x [batch, length, channels]` behind the inputs before it, `cache [batch, channels, tokens]`."""
    return x if cache is None else torch.cat([cache.to(x.dtype).transpose(1, 2), x], dim=1)


def get_unpad_data(attention_mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """For a 0-1 mask `[batch, length]`: flat indices of the tokens, offsets of the rows among them
    `[batch + 1]` (int32), and the longest row."""
    tokens = attention_mask != 0
    lengths = tokens.sum(-1, dtype=torch.int32)
    indices = tokens.flatten().nonzero().flatten()
    return indices, F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), int(lengths.max())


def index_first_axis(x: Tensor, indices: Tensor) -> Tensor:
    """Rows `indices` of `x [rows, ...]`."""
    return x.index_select(0, indices)


def pad_input(hidden_states: Tensor, indices: Tensor, batch_size: int, seq_len: int) -> Tensor:
    """The inverse of unpadding: `[tokens, ...]` to `[batch, length, ...]`, zeros where there is no token."""
    rest = hidden_states.shape[1:]
    padded = hidden_states.new_zeros(batch_size * seq_len, *rest).index_copy(0, indices, hidden_states)
    return padded.view(batch_size, seq_len, *rest)


class Cache:
    """Decoding states of a model, one dictionary a layer, in the order of `layer_idx`."""

    def __init__(self, seen_tokens: int = 0) -> None:
        self.states: list[dict[str, Any]] = []
        self._seen_tokens = seen_tokens

    def __getitem__(self, layer_idx: int) -> dict[str, Any]:
        if not layer_idx < len(self.states):
            raise KeyError(f"the cache holds {len(self.states)} layers, layer {layer_idx} was asked for")
        return self.states[layer_idx]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.states)

    def __len__(self) -> int:
        return len(self.states)

    def update(
        self,
        recurrent_state: Any = None,
        attn_state: Sequence[Tensor] | None = None,
        conv_state: Any = None,
        ffn_state: Any = None,
        layer_idx: int = 0,
        offset: int | None = 1,
        cache_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Stores what is given for one layer; keys and values of attention are appended along dimension 1 and
        cut to `cache_kwargs["window_size"]` where that is set."""
        while len(self.states) <= layer_idx:
            self.states.append(dict.fromkeys(("recurrent_state", "attn_state", "conv_state", "ffn_state")))
        state = self.states[layer_idx]
        if attn_state is not None:
            old = state["attn_state"]
            joined = attn_state if old is None else [torch.cat(pair, 1) for pair in zip(old, attn_state, strict=True)]
            window = (cache_kwargs or {}).get("window_size")
            state["attn_state"] = tuple(t if window is None else t[:, -window:] for t in joined)
        new = {"recurrent_state": recurrent_state, "conv_state": conv_state, "ffn_state": ffn_state}
        state.update({name: value for name, value in new.items() if value is not None})
        if layer_idx == 0:
            self._seen_tokens += offset or 0
        return state

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Tokens seen so far."""
        return self._seen_tokens if self.states else 0


_NAMES: Mapping[str, Mapping[str, Any]] = {
    "fla": {},
    "fla.modules": {
        "FusedRMSNormGated": FusedRMSNormGated, "L2Norm": L2Norm, "RMSNorm": RMSNorm,
        "ShortConvolution": ShortConvolution,
    },
    "fla.modules.convolution": {"ShortConvolution": ShortConvolution},
    "fla.modules.fused_norm_gate": {"FusedRMSNormGated": FusedRMSNormGated},
    "fla.modules.l2norm": {"L2Norm": L2Norm, "l2_norm": l2norm, "l2norm": l2norm},
    "fla.modules.layernorm": {"RMSNorm": RMSNorm},
    "fla.layers": {},
    "fla.layers.utils": {
        "get_unpad_data": get_unpad_data, "index_first_axis": index_first_axis, "pad_input": pad_input,
    },
    "fla.models": {},
    "fla.models.utils": {"Cache": Cache},
}  # fmt: skip

# Where releases 0.3 to 0.6 define these names. 0.6 still answers to the older places, through aliases of its own.
_PLACES: Mapping[str, Sequence[str]] = {
    "RMSNorm": ("fla.modules", "fla.modules.layernorm", "fla.modules.norm.layernorm"),
    "FusedRMSNormGated": ("fla.modules", "fla.modules.fused_norm_gate", "fla.modules.norm.fused_norm_gate"),
    "ShortConvolution": (
        "fla.modules", "fla.modules.convolution", "fla.modules.conv.short_conv", "fla.modules.causal_conv1d",
    ),
    "L2Norm": ("fla.modules.l2norm", "fla.modules.norm.l2norm"),
    "l2_norm": ("fla.modules.l2norm", "fla.modules.norm.l2norm"),
    "l2norm": ("fla.modules.l2norm", "fla.modules.norm.l2norm"),
    "Cache": ("fla.models.utils", "fla.models.cache_utils"),
}  # fmt: skip


class _Module(ModuleType):
    """A module of `fla` as a design sees it; each name comes from the installed package or from the stand-ins."""

    def __init__(self, name: str, on_cuda: bool) -> None:
        super().__init__(name, "Stand-in; see asiarch_hpc.designs.compatibility")
        self._on_cuda = on_cuda
        self.__all__ = list(_NAMES.get(name, ()))

    def __getattr__(self, name: str) -> Any:
        whole = f"{self.__name__}.{name}"
        if name.startswith("__"):
            raise AttributeError(name)
        if whole in _NAMES:
            return _module(whole, self._on_cuda)
        if self._on_cuda:
            for place in (self.__name__, *_PLACES.get(name, ())):
                if (found := getattr(_installed(place), name, None)) is not None:
                    return found
            if (found := _installed(whole)) is not None:
                return found
        try:
            return _NAMES[self.__name__][name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None


_module = cache(_Module)  # one object for one name


@cache
def _installed(name: str) -> ModuleType | None:
    """A module of the installed flash-linear-attention; None where it is missing or does not import here."""
    try:
        return importlib.import_module(name)
    except Exception:  # any failure inside a third-party package means the same: use the stand-ins
        return None


def _import(
    on_cuda: bool,
    name: str,
    globals: Mapping[str, object] | None = None,  # names of the protocol
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    wanted = fromlist or ()
    if level or name.partition(".")[0] != "fla":
        return builtins.__import__(name, globals, locals, wanted, level)
    real = _installed(name) if on_cuda else None
    if real is not None and ("*" in wanted or (wanted and name not in _NAMES)):
        return builtins.__import__(name, globals, locals, wanted, level)
    if real is None and name not in _NAMES:
        raise ImportError(f"no {name} here: without flash-linear-attention on CUDA there are {', '.join(_NAMES)}")
    module = _module(name, on_cuda)
    for each in wanted:
        if each != "*" and not hasattr(module, each):
            raise ImportError(
                f"no {each} in {name} here: without flash-linear-attention on CUDA it holds "
                f"{', '.join(sorted(module.__all__))}"
            )
    return module if wanted else _module("fla", on_cuda)
