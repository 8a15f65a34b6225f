"""Benchmarks of operations that mix tokens by a state or attention-like product, and of a layer that uses one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kernels.delta_rule import chunked as delta_chunked
from kernels.delta_rule import delta_rule
from kernels.linear_attention import chunked as attention_chunked
from kernels.linear_attention import linear_attention
from kernels.operands import plain_forms
from kernels.ttt_linear import ttt_linear
from tests.kernels.bench_case import COMPILED, FLA, Case, Draw, Operands, Target, Way

# Sequences, tokens of each, heads and their width: 65k, 32k and 16k tokens of the heads that targets name, one long
# sequence, and others.
DELTA_SIZES = (
    (32, 2048, 8, 32), (16, 2048, 8, 64), (8, 2048, 8, 128), (1, 32_768, 8, 128), (16, 2048, 8, 128), (8, 2048, 4, 256)
)  # fmt: skip
ATTENTION_SIZES = ((32, 2048, 8, 32), (16, 2048, 8, 64), (16, 2048, 8, 128), (1, 32_768, 8, 128))
FORMS = ("none", "scalar", "diagonal", "diagonal-bonus")


def label(batch: int, length: int, heads: int, width: int) -> str:
    return f"{batch} x {length}, {heads} heads of {width}"


def compiled(way: Way) -> Callable[[], Way]:
    return lambda: torch.compile(way, dynamic=False)


# Sequences of a check, as many as make an operation take the form that is timed. Decays of channels have one form, and
# would need much memory in float64.
ENOUGH = 16
ENOUGH_OF_DELTA = 32


def delta(batch: int, length: int, heads: int, width: int, *, gated: bool = False, documents: bool = False) -> Case:
    """`documents`: each row holds eight, without a gate."""

    def make(draw: Draw, batch: int) -> Operands:
        shape = (batch, length, heads)
        made = [*(draw.normal(*shape, width) for _ in range(3)), draw.uniform(*shape)]
        if documents:
            made.append(draw.documents(batch, length, 8))
        return (*made, *([-0.1 * draw.uniform(*shape, dtype=torch.float32)] if gated else []))

    def options(rest: tuple[Tensor, ...]) -> dict[str, Any]:
        return {"documents" if documents else "log_decay": x for x in rest} | {"normalise": True}

    def ours(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *rest: Tensor) -> Tensor:
        return delta_rule(q, k, v, beta, **options(rest))[0]

    def plain(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *rest: Tensor) -> Tensor:
        return delta_chunked.delta_rule(q, k, v, beta, **options(rest))[0]

    def alone(*operands: Tensor) -> Tensor:
        return ours(*operands[:4])

    more = gated or documents
    return Case(
        f"{'gated_' * gated}delta_rule{'_documents' * documents}", label(batch, length, heads, width), make, ours,
        plain, batch, checked=min(batch, ENOUGH_OF_DELTA),
        rivals=({} if documents else {FLA: _fla_delta}) | {COMPILED: compiled(plain)},
        own={"delta_rule": alone} if more else {},
        flops=6.0 * batch * length * heads * width**2,  # of the recurrence: decay aside, three products with the state
        target=Target(1 / 1.15, "delta_rule") if more else Target(2, FLA), sizes="delta_rule",
    )  # fmt: skip


def _fla_delta() -> Way:
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    def way(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None = None) -> Any:
        if g is None:
            return chunk_delta_rule(q, k, v, beta, use_qk_l2norm_in_kernel=True)[0]
        return chunk_gated_delta_rule(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)[0]

    return way


def attention(form: str, batch: int, length: int, heads: int, width: int) -> Case:
    """`form`: none, scalar (one decay a head), diagonal (one a channel), each with or without "-bonus"."""

    def make(draw: Draw, batch: int) -> Operands:
        shape = (batch, length, heads)
        made = [draw.normal(*shape, width) for _ in range(3)]
        if not form.startswith("none"):
            axes = () if form.startswith("scalar") else (width,)
            made.append(-(draw.normal(*shape, *axes, dtype=torch.float32) - 3).exp().bfloat16())
        return (*made, *([draw.normal(heads, width)] if form.endswith("bonus") else []))

    def options(rest: tuple[Tensor, ...]) -> dict[str, Tensor]:
        names = [*([] if form.startswith("none") else ["log_decay"]), *(["bonus"] if form.endswith("bonus") else [])]
        return dict(zip(names, rest, strict=True))

    def ours(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        return linear_attention(q, k, v, **options(rest))[0]

    def plain(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        return attention_chunked.linear_attention(q, k, v, **options(rest))[0]

    rivals: dict[str, Callable[[], Way]] = {FLA: partial(_fla_attention, form, fused=False)}
    if form in ("none", "scalar"):
        rivals[f"{FLA}, fused"] = partial(_fla_attention, form, fused=True)
    return Case(
        "linear_attention", f"{form}, {label(batch, length, heads, width)}", make, ours, plain, batch,
        checked=min(batch, ENOUGH) if form in ("none", "scalar") else 1,
        rivals=rivals | {COMPILED: compiled(plain)}, flops=4.0 * batch * length * heads * width**2,
        sizes="linear_attention",
    )  # fmt: skip


def _fla_attention(form: str, *, fused: bool) -> Way:
    if form == "diagonal-bonus":
        from fla.ops.rwkv6 import chunk_rwkv6

        return lambda q, k, v, g, bonus: chunk_rwkv6(q, k, v, g, bonus)[0]
    if form == "diagonal":
        from fla.ops.gla import chunk_gla

        return lambda q, k, v, g: chunk_gla(q, k, v, g)[0]
    from fla.ops.simple_gla import chunk_simple_gla, fused_chunk_simple_gla

    way = fused_chunk_simple_gla if fused else chunk_simple_gla
    return lambda q, k, v, g=None: way(q, k, v, g=g)[0]


def ttt(batch: int, length: int, heads: int, width: int) -> Case:
    def make(draw: Draw, batch: int) -> Operands:
        return (
            *(draw.normal(batch, length, heads, width) for _ in range(3)),
            0.1 * draw.uniform(batch, length, heads),
            *(0.1 * draw.normal(heads, width, *rest, dtype=torch.float32) for rest in ((width,), ())),
            *(1 + 0.1 * draw.normal(heads, width, dtype=torch.float32) for _ in range(2)),
        )

    flops = 6.0 * batch * length * heads * width**2  # the model of key and of query, and the step
    return Case(
        "ttt_linear", label(batch, length, heads, width), make, ttt_linear, ttt_linear, batch,
        rivals={COMPILED: compiled(ttt_linear)}, flops=flops,
    )  # fmt: skip


def layer(batch: int, length: int, dim: int, heads: int) -> Case:
    """The seed design DeltaNet with the kernels, beside its plain forms compiled by torch.compile."""

    def make(draw: Draw, batch: int) -> Operands:
        parameters = _layer(dim, heads).parameters()
        return draw.normal(batch, length, dim), *(x.detach().to(draw.device, torch.bfloat16) for x in parameters)

    def ours(*operands: Tensor) -> Tensor:
        return _through(_layer(dim, heads), *operands)

    def plain(*operands: Tensor) -> Tensor:
        with plain_forms():
            return ours(*operands)

    def rival() -> Way:
        way = torch.compile(partial(_through, _layer(dim, heads)), dynamic=False)

        def run(*operands: Tensor) -> Any:
            with plain_forms():
                return way(*operands)

        return run

    return Case(
        "layer", f"{batch} x {length} x {dim}, {heads} heads", make, ours, plain, batch,
        checked=min(batch, ENOUGH),
        rivals={f"plain, {COMPILED}": rival}, flops=batch * length * (4 * 2.0 * dim**2 + 6.0 * dim**2 / heads),
        target=Target(8), tolerances=(3e-2, 3e-2),
    )  # fmt: skip


@cache
def _layer(dim: int, heads: int) -> nn.Module:
    # Here, because only this case needs the designs.
    from asiarch_hpc.designs.contract import load_class
    from asiarch_hpc.designs.seeds import seed_program

    return load_class(seed_program("delta_net"))(hidden_size=dim, num_heads=heads, layer_idx=0)


def _through(module: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
    given = dict(zip((name for name, _ in module.named_parameters()), parameters, strict=True))
    found: Tensor = functional_call(module, given, (x,))[0]
    return found


def cases() -> list[Case]:
    return [
        *(delta(*size, gated=False) for size in DELTA_SIZES),
        *(delta(*size, gated=True) for size in DELTA_SIZES),
        *(delta(*size, documents=True) for size in DELTA_SIZES),
        *(attention(form, *size) for form in FORMS for size in ATTENTION_SIZES),
        ttt(16, 2048, 8, 64),
        layer(8, 2048, 1024, 8),
    ]
