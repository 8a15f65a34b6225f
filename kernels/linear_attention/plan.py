"""Which form of linear attention a GPU's kernels have, and the sizes of their programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from kernels.configurations import choose
from kernels.delta_rule.tiles import TRITON_TYPES
from kernels.operands import product_type


@dataclass(frozen=True)
class Fused:
    """Of the form that walks through sequences: from how many sequences and heads on it is used (None: never), and the
    least width of a tile; tokens of a chunk, columns that a program has the results of (None: all), warps and stages;
    these four of the gradients too, and a bound on their registers."""

    few: int | None
    part: int
    chunk: int
    columns: int | None
    warps: int
    stages: int
    gradient_chunk: int
    gradient_columns: int | None
    gradient_warps: int
    gradient_stages: int
    gradient_registers: int | None = None


@dataclass(frozen=True)
class Sizes:
    """Tokens of a chunk, columns of keys and values at once, and warps: of each kernel but `states`, of `gradients`. Of
    `states`: keys of a tile, warps, and chunks whose loads are under way."""

    chunk: int
    part: int
    warps: int
    gradient_warps: int
    state_rows: int
    state_warps: int
    state_stages: int
    fused: Fused


@dataclass(frozen=True)
class Plan:
    """Everything the kernels need to know about shapes and types at compile time."""

    fused: bool
    sizes: Sizes
    key: int
    value: int
    dot: torch.dtype
    precision: str


# What `make tune` tries, entry after entry.
SPACE: dict[str, tuple[Any, ...]] = {
    "chunk": (32, 64),
    "part": (16, 32, 64),
    "warps": (1, 2, 4, 8),
    "gradient_warps": (1, 2, 4, 8),
    "state_rows": (16, 32),
    "state_warps": (1, 2, 4),
    "state_stages": (2, 3, 4, 5),
    "fused.few": (None, 128),
    "fused.chunk": (32, 64, 128),
    "fused.columns": (None, 32, 64),
    "fused.warps": (1, 2, 4, 8),
    "fused.stages": (1, 2, 3, 4, 5),
    "fused.gradient_chunk": (32, 64, 128),
    "fused.gradient_columns": (None, 32, 64),
    "fused.gradient_warps": (1, 2, 4, 8),
    "fused.gradient_stages": (1, 2, 3, 4),
    "fused.gradient_registers": (None, 168, 255),
}


def sizes(fused: dict[str, Any], **others: int) -> Sizes:
    return Sizes(**others, fused=Fused(**fused))


def plan(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, bonus: Tensor | None) -> Plan:
    dot, precision = product_type(q, k, v)
    by_channel = log_decay is not None and log_decay.ndim == 4
    shape = {"bits": 8 * dot.itemsize, "width": int(max(k.shape[-1], v.shape[-1]))}
    shape |= {"by_channel": int(by_channel), "decayed": int(log_decay is not None)}
    chosen = choose("linear_attention", sizes, v.device, **shape)
    form = chosen.fused
    fused = form.few is not None and not by_channel and bonus is None and q.shape[0] * q.shape[2] >= form.few
    if fused:
        key, value = (max(form.part, triton.next_power_of_2(x.shape[-1])) for x in (k, v))
    else:
        key, value = (-(-x.shape[-1] // chosen.part) * chosen.part for x in (k, v))
    return Plan(fused, chosen, key, value, dot, precision)


def arguments(p: Plan, chunk: int, q: Tensor, v: Tensor, log_decay: Tensor | None) -> dict[str, Any]:
    """Compile-time arguments that kernels of both forms have."""
    return {
        "C": chunk,
        "BK": p.key,
        "BV": p.value,
        "EVEN_K": q.shape[-1] == p.key,
        "EVEN_V": v.shape[-1] == p.value,
        "SCALAR": log_decay is not None and log_decay.ndim == 3,
        "DOT": TRITON_TYPES[p.dot],
        "PRECISION": p.precision,
    }


def strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(x.stride(axis) for x in tensors for axis in range(3))


def device_of(x: Tensor) -> torch.cuda.device:
    """Launches go to the current device."""
    return torch.cuda.device(x.device if x.is_cuda else -1)
