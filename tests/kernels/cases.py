"""Every operation in every mode, with a maker of its operands, for the tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import delta_rule, linear_attention, linear_scan, long_convolution, short_convolution, ttt_linear
from kernels.delta_rule import reference as delta_rule_reference
from kernels.linear_attention import reference as linear_attention_reference
from kernels.linear_scan import reference as linear_scan_reference
from kernels.long_convolution import reference as long_convolution_reference
from kernels.short_convolution import reference as short_convolution_reference
from kernels.ttt_linear import reference as ttt_linear_reference

Operands = dict[str, Tensor]
Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Sizes:
    batch: int = 2
    length: int = 31
    heads: int = 2
    key: int = 4
    value: int = 3


@dataclass(frozen=True)
class Case:
    """`tokens` names the operands that have a value for each token."""

    name: str
    operation: Callable[..., Any]
    reference: Callable[..., Any]
    make: Callable[[Draw, Sizes], Operands]
    tokens: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    chunked: bool = True

    def operands(self, sizes: Sizes, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Operands:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        return {name: x.to(dtype) for name, x in self.make(draw, sizes).items()}

    def run(self, operands: Operands, **options: Any) -> tuple[Tensor, ...]:
        return _tuple(self.operation(**operands, **self.options, **options))

    def run_reference(self, operands: Operands, **options: Any) -> tuple[Tensor, ...]:
        return _tuple(self.reference(**operands, **self.options, **options))


def gradients(results: tuple[Tensor, ...], operands: Operands, *, seed: int = 1) -> Operands:
    """Of a random linear function of all results, by every operand."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64, device=results[0].device)
    for result in results:
        weight = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.device)
        total = total + (result.double() * weight).sum()
    found = torch.autograd.grad(total, list(operands.values()), allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(operands.items(), found, strict=True)}


def requiring_grad(operands: Operands) -> Operands:
    return {name: x.detach().clone().requires_grad_() for name, x in operands.items()}


def repeated(function: Callable[..., tuple[Tensor, ...]], operands: Operands, times: int = 20) -> bool:
    """Whether results and gradients of the same operands have the same bits each time."""

    def once() -> list[Tensor]:
        results = function(**operands)
        return [*results, *gradients(results, operands).values()]

    wanted = once()
    return all(torch.equal(a, b) for _ in range(times) for a, b in zip(once(), wanted, strict=True))


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error in the Euclidean norm; absolute for expected norms below 1e-6 of one an element."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm()) / max(float(expected.norm()), 1e-6 * expected.numel() ** 0.5)


def _tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _heads(draw: Draw, s: Sizes, dim: int) -> Tensor:
    return draw(s.batch, s.length, s.heads, dim)


def _delta(*, decay: bool) -> Callable[[Draw, Sizes], Operands]:
    def make(draw: Draw, s: Sizes) -> Operands:
        operands = {
            "q": _heads(draw, s, s.key),
            "k": F.normalize(_heads(draw, s, s.key), dim=-1),
            "v": _heads(draw, s, s.value),
            "beta": _heads(draw, s, 1).squeeze(-1).sigmoid() * 2,
            "initial_state": draw(s.batch, s.heads, s.key, s.value),
        }
        return operands | ({"log_decay": -_heads(draw, s, 1).squeeze(-1).exp()} if decay else {})

    return make


def _attention(decay: str, *, bonus: bool) -> Callable[[Draw, Sizes], Operands]:
    def make(draw: Draw, s: Sizes) -> Operands:
        operands = {
            "q": _heads(draw, s, s.key),
            "k": _heads(draw, s, s.key),
            "v": _heads(draw, s, s.value),
            "initial_state": draw(s.batch, s.heads, s.key, s.value),
        }
        if decay == "scalar":
            operands["log_decay"] = -_heads(draw, s, 1).squeeze(-1).exp()
        if decay == "diagonal":
            operands["log_decay"] = -_heads(draw, s, s.key).exp()
        return operands | ({"bonus": draw(s.heads, s.key)} if bonus else {})

    return make


def _ttt(draw: Draw, s: Sizes) -> Operands:
    return {
        "q": _heads(draw, s, s.key),
        "k": _heads(draw, s, s.key),
        "v": _heads(draw, s, s.key),
        "eta": _heads(draw, s, 1).squeeze(-1).sigmoid() * 0.1,
        "weight": draw(s.heads, s.key, s.key) * 0.5,
        "bias": draw(s.heads, s.key) * 0.5,
        "ln_weight": 1 + draw(s.heads, s.key) * 0.2,
        "ln_bias": draw(s.heads, s.key) * 0.2,
    }


def _short(width: int) -> Callable[[Draw, Sizes], Operands]:
    return lambda draw, s: {
        "x": draw(s.batch, s.length, s.key), "weight": draw(s.key, width), "bias": draw(s.key)
    }  # fmt: skip


def _long(draw: Draw, s: Sizes) -> Operands:
    return {"x": draw(s.batch, s.length, s.key), "filter": draw(s.key, s.length)}


def _scan(*, constant: bool) -> Callable[[Draw, Sizes], Operands]:
    def make(draw: Draw, s: Sizes) -> Operands:
        shape = (s.key,) if constant else (s.batch, s.length, s.key)
        return {"x": draw(s.batch, s.length, s.key), "log_decay": -draw(*shape).exp()}

    return make


CASES = [
    *(
        Case(
            name=f"delta_rule-{'decay' if decay else 'plain'}",
            operation=delta_rule.delta_rule,
            reference=delta_rule_reference.delta_rule,
            make=_delta(decay=decay),
            tokens=("q", "k", "v", "beta", *(["log_decay"] if decay else [])),
        )
        for decay in (False, True)
    ),
    *(
        Case(
            name=f"linear_attention-{decay}{'-bonus' if bonus else ''}",
            operation=linear_attention.linear_attention,
            reference=linear_attention_reference.linear_attention,
            make=_attention(decay, bonus=bonus),
            tokens=("q", "k", "v", *(["log_decay"] if decay != "none" else [])),
        )
        for decay in ("none", "scalar", "diagonal")
        for bonus in (False, True)
    ),
    Case(
        name="ttt_linear",
        operation=ttt_linear.ttt_linear,
        reference=ttt_linear_reference.ttt_linear,
        make=_ttt,
        tokens=("q", "k", "v", "eta"),
    ),
    *(
        Case(
            name=f"short_convolution-{width}-{activation}",
            operation=short_convolution.short_convolution,
            reference=short_convolution_reference.short_convolution,
            make=_short(width),
            tokens=("x",),
            options={"activation": activation},
            chunked=False,
        )
        for width, activation in ((1, None), (4, "silu"))
    ),
    Case(
        name="long_convolution",
        operation=long_convolution.long_convolution,
        reference=long_convolution_reference.long_convolution,
        make=_long,
        tokens=("x",),
        chunked=False,
    ),
    *(
        Case(
            name=f"linear_scan-{'constant' if constant else 'varying'}",
            operation=linear_scan.linear_scan,
            reference=linear_scan_reference.linear_scan,
            make=_scan(constant=constant),
            tokens=("x",) if constant else ("x", "log_decay"),
            chunked=False,
        )
        for constant in (True, False)
    ),
]
DECAYED = [case for case in CASES if "log_decay" in case.operands(Sizes(length=1))]
STATEFUL = [case for case in CASES if "initial_state" in case.operands(Sizes(length=1))]
