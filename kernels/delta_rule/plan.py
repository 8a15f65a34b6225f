"""Which form of the delta rule a GPU's kernels have, and the sizes of their programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from kernels.configurations import choose
from kernels.delta_rule import chunked
from kernels.delta_rule.tiles import TRITON_TYPES
from kernels.operands import product_type


@dataclass(frozen=True)
class Launch:
    """Sizes of one kernel's programs: columns at once, warps, stages; `flip`: tiles are transposed."""

    part: int
    warps: int
    stages: int
    registers: int | None = None
    flip: bool = False


@dataclass(frozen=True)
class Walk:
    """Of the form that walks through sequences: from how many sequences and heads on it is used (None: never), tokens
    of a chunk, and sizes of each kernel; `ends`: of the walk to the ends of segments.

    With fewer programs than `programs`, segments of a sequence are walked through side by side, `span` chunks each at
    least, if there are as many as `segments`: the way to their ends is walked twice.
    """

    few: int | None
    chunk: int
    programs: int
    segments: int
    span: int
    systems: Launch
    ends: Launch
    outputs: Launch
    adjoint: Launch
    gradients: Launch


@dataclass(frozen=True)
class Sizes:
    """Tokens of a chunk, and sizes of each kernel. `long` chunks at least, and fewer programs than `few`, make it worth
    to scan segments of a sequence side by side. `walk`: the other form's."""

    chunk: int
    long: int
    few: int
    transitions: Launch
    states: Launch
    outputs: Launch
    adjoint: Launch
    gradients: Launch
    walk: Walk


@dataclass(frozen=True)
class Plan:
    """Everything the kernels need to know about shapes and types at compile time. `chunk`: tokens of one, in the form
    that is used; `span`: chunks of a segment of a sequence, of which `segments` are walked through side by side."""

    walks: bool
    sizes: Sizes
    chunk: int
    span: int
    segments: int
    key: int
    value: int
    dot: torch.dtype
    precision: str


# What `make tune` tries, entry after entry.
SPACE: dict[str, tuple[Any, ...]] = {
    "chunk": (32, 64),
    **{f"{kernel}.warps": (1, 2, 4, 8) for kernel in ("transitions", "states", "outputs", "adjoint", "gradients")},
    **{f"{kernel}.part": (16, 32, 64, 128) for kernel in ("transitions", "states", "outputs", "adjoint", "gradients")},
    **{f"{kernel}.registers": (None, 96, 128, 168) for kernel in ("transitions", "outputs", "adjoint", "gradients")},
    "states.stages": (1, 2, 3, 4),
    "gradients.flip": (False, True),
    "walk.few": (None, 8, 16, 48, 128),
    "walk.chunk": (32, 64),
    "walk.programs": (132, 264),
    "walk.span": (4, 8, 16),
    **{f"walk.{kernel}.warps": (1, 2, 4, 8) for kernel in ("systems", "ends", "outputs", "adjoint", "gradients")},
    **{f"walk.{kernel}.part": (16, 32, 64, 128) for kernel in ("ends", "outputs", "adjoint")},
    "walk.gradients.part": (32, 64, 128),
    **{f"walk.{kernel}.stages": (1, 2, 3, 4) for kernel in ("ends", "outputs", "adjoint")},
    **{f"walk.{kernel}.registers": (None, 112, 128, 168) for kernel in ("systems", "gradients")},
}


def _launches(kernels: dict[str, Any]) -> dict[str, Any]:
    return {name: Launch(**of) if isinstance(of, dict) else of for name, of in kernels.items()}


def sizes(walk: dict[str, Any], **kernels: Any) -> Sizes:
    return Sizes(**_launches(kernels), walk=Walk(**_launches(walk)))


def plan(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None) -> Plan:
    dot, precision = product_type(q, k, v)
    key, value = (max(16, triton.next_power_of_2(x.shape[-1])) for x in (k, v))
    if dot == torch.bfloat16 and max(key, value) > 32:
        key, value = max(key, 64), max(value, 64)  # narrower tiles fault now and then in Triton 3.6's wgmma
    shape = {"bits": 8 * dot.itemsize, "width": int(max(key, value)), "gated": int(log_decay is not None)}
    chosen = choose("delta_rule", sizes, v.device, **shape)
    walk, rows = chosen.walk, q.shape[0] * q.shape[2]
    span, segments = _segments(walk, rows * (value // min(walk.outputs.part, value)), -(-q.shape[1] // walk.chunk))
    if walk.few is not None and (rows >= walk.few or segments > 1):
        return Plan(True, chosen, walk.chunk, span, segments, key, value, dot, precision)
    return Plan(False, chosen, chosen.chunk, 0, 0, key, value, dot, precision)


def _segments(walk: Walk, programs: int, chunks: int) -> tuple[int, int]:
    """Chunks of a segment, and how many there are, where as many programs walk through whole sequences."""
    most = min(walk.programs // programs, chunks // walk.span)
    if most < max(walk.segments, 2):
        return chunks, 1
    span = -(-chunks // most)
    return span, -(-chunks // span)


def strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(x.stride(axis) for x in tensors for axis in range(3))


def arguments(
    p: Plan, launch: Launch, q: Tensor, v: Tensor, log_decay: Tensor | None, documents: Tensor | None,
    normalise: bool,
) -> dict[str, Any]:  # fmt: skip
    """Compile-time arguments of kernels that see one chunk."""
    return {
        "C": p.chunk,
        "BK": p.key,
        "BV": p.value,
        "PART": min(launch.part, p.value),
        "EVEN_K": q.shape[-1] == p.key,
        "EVEN_V": v.shape[-1] == p.value,
        "GATED": log_decay is not None,
        "APART": documents is not None,
        "NORMALISE": normalise,
        "EPS": chunked.EPS,
        "DOT": TRITON_TYPES[p.dot],
        "PRECISION": p.precision,
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "maxnreg": launch.registers,
    }
