"""Benchmarks of the head's loss and of operations on channels by themselves: convolutions, scans, norms, SwiGLU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear_cross_entropy import linear_cross_entropy, linear_log_likelihood
from kernels.linear_scan import chunked as scan_chunked
from kernels.linear_scan import linear_scan
from kernels.long_convolution import long_convolution
from kernels.operands import working_dtype
from kernels.rms_norm import gated_rms_norm, rms_norm
from kernels.rms_norm import plain as norm_plain
from kernels.short_convolution import chunked as convolution_chunked
from kernels.short_convolution import short_convolution
from kernels.swiglu import reference as swiglu_reference
from kernels.swiglu import swiglu
from tests.kernels.bench_case import COMPILED, FLA, Case, Draw, Operands, Target, Way
from tests.kernels.bench_mixers import compiled

VOCAB, ROWS = 50_257, 50_304
LENGTH = 2048
HALF, SINGLE = torch.bfloat16, torch.float32
TIGHT = (1e-5, 1e-5)  # of float32 operands
# Sequences, tokens of each, channels; the last ones have few channels in all, for which the scan cuts sequences.
SIZES = ((32, 2048, 256), (32, 2048, 1024))
SCAN_SIZES = (*SIZES, (8, 2048, 1024), (1, 32_768, 1024))


def label(*sizes: int) -> str:
    return " x ".join(str(n) for n in sizes)


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    return TIGHT if dtype == SINGLE else (1e-2, 1e-2)


def head(
    batch: int, length: int, dim: int, *, spread: float = 2.0, likelihood: bool = False, timed: bool = True
) -> Case:
    """`spread`: standard deviation of the logits; 60 makes losses that leave the range of one pass."""

    def make(draw: Draw, batch: int) -> Operands:
        hidden = draw.normal(batch * length, dim)
        weight = (draw.normal(ROWS, dim, dtype=SINGLE) * (spread / dim**0.5)).bfloat16().float()
        targets = draw.integers(VOCAB, batch * length)
        targets[::97] = -100
        return hidden, weight, targets

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, vocab=VOCAB)

    def likelihoods(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return linear_log_likelihood(hidden, weight, targets, vocab=VOCAB)

    def materialised(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logits = hidden @ weight[:VOCAB].to(hidden.dtype).T
        if likelihood:
            return -F.cross_entropy(logits, targets, reduction="none")
        return F.cross_entropy(logits, targets, reduction="sum")

    rivals: dict[str, Callable[[], Way]] = {} if likelihood else {FLA: _fla_head}
    rivals |= {"bfloat16 logits": lambda: materialised, COMPILED: compiled(materialised)}
    way = likelihoods if likelihood else loss
    tokens = label(batch * length, dim)
    return Case(
        "linear_log_likelihood" if likelihood else "linear_cross_entropy",
        tokens if timed else f"{tokens}, spread {spread:g}", make, way, way, batch, rivals=rivals,
        flops=2.0 * batch * length * dim * VOCAB, timed=timed, gradients=not likelihood, tolerances=(1e-5, 1e-2),
        sizes="linear_log_likelihood" if likelihood else "linear_cross_entropy",
    )  # fmt: skip


def _fla_head() -> Way:
    from fla.modules import FusedLinearCrossEntropyLoss

    fused = FusedLinearCrossEntropyLoss(reduction="sum")
    return lambda hidden, weight, targets: fused(hidden, targets, weight[:VOCAB].bfloat16())


def convolution(
    batch: int, length: int, dim: int, taps: int, *, dtype: torch.dtype = HALF, silu: bool = True, biased: bool = False,
    documents: bool = False, timed: bool = True,
) -> Case:  # fmt: skip
    """`documents`: each row holds eight, which the last operand numbers."""
    activation: Any = "silu" if silu else None

    def make(draw: Draw, batch: int) -> Operands:
        weight = draw.normal(dim, taps, dtype=SINGLE) / taps**0.5
        more = [draw.normal(dim, dtype=SINGLE)] if biased else []
        if documents:
            more.append(draw.documents(batch, length, 8))
        return draw.normal(batch, length, dim, dtype=dtype), weight, *more

    def options(rest: tuple[Tensor, ...]) -> dict[str, Any]:
        names = [*["bias"] * biased, *["documents"] * documents]
        return dict(zip(names, rest, strict=True)) | {"activation": activation}

    def ours(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        return short_convolution(x, weight, **options(rest))

    def plain(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        return convolution_chunked.short_convolution(x, weight, **options(rest))

    def alone(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        return short_convolution(x, weight, activation=activation)

    def fla() -> Way:
        from fla.modules.causal_conv1d import causal_conv1d

        return lambda x, weight, bias=None: causal_conv1d(x, weight, bias, activation=activation)[0]

    name = "short_convolution" if taps <= 8 else "short_convolution_wide"
    kind = f"{taps} taps{', linear' * (not silu)}{', float32' * (dtype == SINGLE)}"
    rivals: dict[str, Callable[[], Way]] = {} if documents else {FLA: fla}
    return Case(
        f"{name}{'_documents' * documents}", f"{label(batch, length, dim)}, {kind}", make, ours, plain, batch,
        checked=min(batch, 3), rivals=rivals | {COMPILED: compiled(plain)}, own={name: alone} if documents else {},
        flops=2.0 * taps * batch * length * dim, vector=True, timed=timed,
        tolerances=tolerances(dtype), sizes=name, target=Target(1 / 1.15, name) if documents else Target(1),
    )  # fmt: skip


def scan(
    batch: int, length: int, dim: int, *, dtype: torch.dtype = HALF, constant: bool = False, timed: bool = True
) -> Case:
    def make(draw: Draw, batch: int) -> Operands:
        shape = (dim,) if constant else (batch, length, dim)
        log_decay = -(draw.normal(*shape, dtype=SINGLE) - 2).exp()
        return draw.normal(batch, length, dim, dtype=dtype), log_decay.to(dtype)

    def fla(name: str) -> Way:
        from fla.ops import hgrn

        return lambda x, log_decay: getattr(hgrn, name)(x, log_decay)[0]

    return Case(
        "linear_scan", f"{label(batch, length, dim)}{', constant' * constant}{', float32' * (dtype == SINGLE)}", make,
        linear_scan, scan_chunked.linear_scan, batch, checked=min(batch, 3) if timed else batch,
        # The same recurrence is HGRN's there.
        rivals={
            FLA: lambda: fla("chunk_hgrn"), f"{FLA}, recurrent": lambda: fla("fused_recurrent_hgrn"),
            COMPILED: compiled(scan_chunked.linear_scan),
        },
        flops=3.0 * batch * length * dim, vector=True, timed=timed, tolerances=tolerances(dtype), sizes="linear_scan",
    )  # fmt: skip


def norm(rows: int, dim: int, *, gated: bool, dtype: torch.dtype = HALF, timed: bool = True) -> Case:
    def make(draw: Draw, batch: int) -> Operands:
        wide = [draw.normal(rows, dim, dtype=dtype) for _ in range(1 + gated)]
        return *wide, draw.normal(dim, dtype=SINGLE)

    def plain(x: Tensor, *rest: Tensor) -> Tensor:
        return norm_plain.normed(x, rest[-1], rest[0] if gated else None, 1e-6, True)

    def fla() -> Way:
        from fla.modules.norm.fused_norm_gate import rms_norm_gated
        from fla.modules.norm.layernorm import rms_norm as fla_norm

        if gated:
            return lambda x, gate, weight: rms_norm_gated(x, gate, weight, None)
        return lambda x, weight: fla_norm(x, weight, None, eps=1e-6)

    return Case(
        f"{'gated_' * gated}rms_norm", label(rows, dim) + ", float32" * (dtype == SINGLE), make,
        gated_rms_norm if gated else rms_norm, plain, rivals={FLA: fla, COMPILED: compiled(plain)},
        flops=(8.0 if gated else 4.0) * rows * dim, vector=True, timed=timed, tolerances=tolerances(dtype),
        sizes="rms_norm",
    )  # fmt: skip


def gates(rows: int, dim: int, *, dtype: torch.dtype = HALF, timed: bool = True) -> Case:
    def make(draw: Draw, batch: int) -> Operands:
        return (draw.normal(rows, 2 * dim, dtype=dtype),)

    def plain(x: Tensor) -> Tensor:
        gate, value = x.to(working_dtype(x)).chunk(2, dim=-1)
        return (F.silu(gate) * value).to(x.dtype)

    def fla() -> Way:
        from fla.modules.activations import swiglu as fla_swiglu

        return lambda x: fla_swiglu(*x.chunk(2, dim=-1))

    return Case(
        "swiglu", label(rows, dim) + ", float32" * (dtype == SINGLE), make, swiglu, swiglu_reference.swiglu,
        rivals={FLA: fla, COMPILED: compiled(plain)}, flops=5.0 * rows * dim, vector=True, timed=timed,
        tolerances=tolerances(dtype), sizes="swiglu",
    )  # fmt: skip


def long(batch: int, length: int, dim: int) -> Case:
    def make(draw: Draw, batch: int) -> Operands:
        return draw.normal(batch, length, dim), draw.normal(dim, length, dtype=SINGLE) / length**0.5

    return Case(
        "long_convolution", label(batch, length, dim), make, long_convolution, long_convolution, batch,
        rivals={COMPILED: compiled(long_convolution)}, vector=True,
        # Transforms of twice the length, there and back, at 5 n log2(n); those of the filter aside.
        flops=2 * 5 * 2.0 * length * math.log2(2 * length) * batch * dim,
    )  # fmt: skip


def cases() -> list[Case]:
    heads = ((32, LENGTH, 256), (16, LENGTH, 1024))
    ragged = ((1, 1000, 256, 60.0), (1, 777, 1024, 2.0), (1, 129, 1024, 60.0), (1, 65, 100, 2.0))
    return [
        *(head(*sizes, spread=spread, timed=False) for *sizes, spread in ragged),
        *(head(*sizes) for sizes in heads),
        *(head(*sizes, spread=spread, likelihood=True, timed=False) for *sizes, spread in ragged),
        *(head(*sizes, likelihood=True) for sizes in heads),
        *(
            convolution(3, 65, 100, taps, dtype=dtype, silu=silu, biased=silu, timed=False)
            for taps in (4, 9, 30) for dtype in (HALF, SINGLE) for silu in (True, False)
        ),
        convolution(3, 65, 100, 4, biased=True, documents=True, timed=False),
        *(convolution(*sizes, taps) for taps in (4, 16, 64) for sizes in SIZES),
        *(convolution(*sizes, 4, documents=True) for sizes in SIZES),
        *(
            scan(*sizes, dtype=dtype, constant=constant, timed=False)
            for sizes in ((3, 65, 100), (64, 300, 1024)) for dtype in (HALF, SINGLE) for constant in (False, True)
        ),
        *(scan(*sizes) for sizes in SCAN_SIZES),
        *(
            norm(rows, dim, gated=gated, dtype=dtype, timed=False)
            for gated in (False, True) for rows, dim in ((33, 1024), (77, 100)) for dtype in (HALF, SINGLE)
        ),
        *(norm(65_536, dim, gated=gated) for gated in (False, True) for dim in (256, 1024)),
        *(gates(77, 100, dtype=dtype, timed=False) for dtype in (HALF, SINGLE)),
        *(gates(65_536, dim) for dim in (680, 2728)),
        long(8, LENGTH, 256),
    ]  # fmt: skip
