"""Which operation of `kernels/` a function of a published program equals, found by running both.

The other side of each comparison is the very text that `substitution.rewrite` would put in the function's place. This
module executes the program: it belongs into the gate's sandbox.
"""

from __future__ import annotations

import ast
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asiarch_hpc.designs.contract import load_class
from asiarch_hpc.designs.hashing import parse
from asiarch_hpc.errors import DesignError
from asiarch_hpc.importers.recurrences import Candidate, functions, lines_of
from asiarch_hpc.importers.substitution import NORMS, OPERATIONS, Agreement, Operation, State, kernel_of, statements
from kernels.delta_rule import delta_rule
from kernels.linear_attention import linear_attention

# Lengths around the borders of chunks of 32 and 64 tokens, the sizes in use; a function's own size is no promise.
LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 100, 257)
SIZES = (16, 48)  # other values for a function's chunk size
_FEW = (1, 33, 64, 100)
_DIMS = ((8, 8), (4, 12), (16, 6))  # key, value
_SEARCHED = 1e-6  # the search ends at a reading this close; whether it is close enough, the caller's tolerance says
_FLOOR = 0.01  # gradients smaller than this share of the largest one are compared with that share
_LOW = {"bfloat16", "float16", "half"}
_SINGLE = {"float", "float32"}

_KERNELS = {"delta_rule": delta_rule, "linear_attention": linear_attention}

Function = Callable[..., Any]
Results = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One comparison: sizes, and what is special about the numbers ("small", "padded" or "")."""

    length: int
    key: int = 4
    value: int = 6
    kind: str = ""
    size: int | None = None  # value of the function's size parameters, None for its own
    without: bool = False  # optional parameters are None


def measure(source: str, candidate: Candidate, *, seed: int) -> Agreement:
    """See `substitution.measure`."""
    if candidate.unclear:
        return Agreement(function=candidate.name, reason=f"no telling what {', '.join(candidate.unclear)} receives")
    double = _published(source, candidate, torch.float64)
    found = _search(double, candidate, seed)
    if not found:
        return Agreement(function=candidate.name, reason=f"no operation takes {', '.join(_parameters(candidate))}")
    _, operation = min(found.values(), key=lambda pair: pair[0])
    cases = tuple(_cases(candidate))
    errors = _compare(double, candidate, operation, cases, torch.float64, seed)
    few = [case for case in cases if case.length in _FEW]
    lifted = _published(source, candidate, torch.float32)
    single = _compare(lifted, candidate, operation, few, torch.float32, seed)
    errors = {name: max(errors[name], single[name]) for name in errors}
    error = max(errors.values())
    as_written, precision = _as_written(_published(source, candidate, None), candidate, operation, few, seed)
    return Agreement(
        function=candidate.name,
        operation=operation,
        error=error if math.isfinite(error) else None,
        errors={name: value for name, value in errors.items() if math.isfinite(value)},
        others={n: value for n, (value, _) in found.items() if n != operation.name and math.isfinite(value)},
        as_written=as_written,
        precision=precision,
        lengths=tuple(sorted({case.length for case in cases})),
        dtypes=("float64", "float32"),
        reason="" if math.isfinite(error) else "for some inputs it fails, or what it gives is not finite",
    )


def _cases(candidate: Candidate) -> Iterator[Case]:
    for number, length in enumerate(LENGTHS):
        key, value = _DIMS[number % len(_DIMS)]
        yield Case(length=length, key=key, value=value)
    yield Case(length=40, kind="small")
    yield Case(length=100, kind="padded")
    if candidate.sizes:
        yield from (Case(length=65, size=size) for size in SIZES)
    if candidate.optional:
        yield from (Case(length=length, without=True) for length in _FEW)


def _search(function: Function, candidate: Candidate, seed: int) -> dict[str, tuple[float, Operation]]:
    """For each operation that takes the operands, the closest reading and the relative error of its output."""
    found: dict[str, tuple[float, Operation]] = {}
    case = Case(length=7, key=4, value=5, kind="mixed")
    for reading in _readings(candidate):
        inputs = _inputs(reading, case, torch.float64, seed)
        try:
            output, state = _parts(function(**inputs))
        except Exception:  # foreign code that is given operands which it may not take
            continue
        kept: State = "none" if state is None else "kept" if state.requires_grad else "detached"
        for norms, scaled in _conventions(reading):
            operation = replace(reading, norms=norms, scaled=scaled, state=kept)
            expected, _ = _parts(_replacement(operation)(**inputs))
            error = _relative(output, expected)
            if error < found.get(reading.name, (math.inf, None))[0]:
                found[reading.name] = error, operation
            if error < _SEARCHED:
                return found
    return found


def _readings(candidate: Candidate) -> Iterator[Operation]:
    """Every way in which the parameters can be the operands of an operation, likely ones first."""
    parameters = _parameters(candidate)
    ways: list[tuple[int, Operation]] = []
    for name, operands in OPERATIONS.items():
        for roles in (operands, (*operands, "initial_state")):
            if len(roles) != len(parameters):
                continue
            for order in itertools.permutations(roles):
                given = dict(zip(order, parameters, strict=True))
                if any(given[r] in candidate.optional for r in order if r in ("q", "k", "v", "beta")):
                    continue
                strange = sum(role[0] != parameter.lower()[0] for role, parameter in given.items())
                decays = "decay" in roles or "decays" in roles
                for heads_first, logarithmic in itertools.product((True, False), (True, False) if decays else (False,)):
                    ways.append((
                        strange,
                        Operation(
                            name=name,
                            roles=given,
                            optional=tuple(p for p in parameters if p in candidate.optional),
                            heads_first=heads_first,
                            logarithmic=logarithmic,
                        ),
                    ))  # fmt: skip
    yield from (operation for _, operation in sorted(ways, key=lambda way: way[0]))


def _conventions(reading: Operation) -> Iterator[tuple[dict[str, str], bool]]:
    """What a function may do to queries and keys itself, and whether it scales its output."""
    if "q" not in reading.roles:
        yield {}, False
        return
    for q, k, scaled in itertools.product((*NORMS, ""), (*NORMS, ""), (False, True)):
        yield {operand: norm for operand, norm in (("q", q), ("k", k)) if norm}, scaled


def _parameters(candidate: Candidate) -> tuple[str, ...]:
    return (*candidate.tensors, *candidate.optional)


def _inputs(operation: Operation, case: Case, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Random operands by parameter; keys are shorter than 1.1 and beta below 1.6, so no state can grow."""
    generator = torch.Generator().manual_seed(seed)
    batch, length, heads, key, value = 2, case.length, 3, case.key, case.value

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    made: dict[str, Tensor] = {}
    for operand in operation.roles:
        if operand == "initial_state":
            made[operand] = normal(batch, heads, *([value] if operation.name == "moving_average" else [key, value]))
            continue
        if operand in ("decay", "decays"):
            each = uniform(0.3, 0.999, batch, length, heads, *([key] if operand == "decays" else []))
            each = each.log() if operation.logarithmic else each
        elif operand == "beta":
            each = uniform(0.05, 1.6, batch, length, heads)
        elif operand == "v":
            each = normal(batch, length, heads, value)
        else:
            each = F.normalize(normal(batch, length, heads, key), dim=-1) * uniform(0.3, 1.1, batch, length, heads, 1)
            # As small as the numbers that keep a norm from dividing by zero.
            each[:, : {"small": length, "mixed": length // 2}.get(case.kind, 0)] *= 1e-3
        if case.kind == "padded" and operand not in ("decay", "decays"):
            each[:, -(length // 3) :] = 0
        made[operand] = each.transpose(1, 2) if operation.heads_first else each
    return {
        parameter: made[operand].to(dtype).contiguous().requires_grad_()
        for operand, parameter in operation.roles.items()
        if not (case.without and parameter in operation.optional)
    }


def _compare(
    function: Function, candidate: Candidate, operation: Operation, cases: Iterable[Case], dtype: torch.dtype, seed: int
) -> dict[str, float]:
    """The worst relative difference of every result over all cases; infinity where there is none."""
    worst: dict[str, float] = {}
    for number, case in enumerate(cases):
        inputs = _inputs(operation, case, dtype, seed + number)
        absent = dict.fromkeys(parameter for parameter in operation.roles.values() if parameter not in inputs)
        sizes = {} if case.size is None else dict.fromkeys(candidate.sizes, case.size)
        expected = _results(_replacement(operation), inputs, absent, seed)
        try:
            results = _results(function, inputs, {**absent, **sizes}, seed)
        except Exception:  # foreign code
            results = {}
        gradients = [float(value.norm()) for name, value in expected.items() if name.startswith("gradient")]
        for name, value in expected.items():
            floor = _FLOOR * max(gradients) if name.startswith("gradient") else 0.0
            error = _relative(results[name], value, floor) if name in results else math.inf
            worst[name] = max(worst.get(name, 0.0), error)
    return worst


def _as_written(
    function: Function, candidate: Candidate, operation: Operation, cases: Sequence[Case], seed: int
) -> tuple[float | None, str]:
    """The worst difference with the function's own casts, and the precision in which it works."""
    error = max(_compare(function, candidate, operation, cases, torch.float32, seed).values())
    if math.isfinite(error):
        return error, "float32"
    with torch.autocast("cpu", torch.bfloat16):
        error = max(_compare(function, candidate, operation, cases, torch.bfloat16, seed).values())
    return (error, "bfloat16") if math.isfinite(error) else (None, "")


def _results(function: Function, inputs: Mapping[str, Tensor], others: Mapping[str, Any], seed: int) -> Results:
    """Output, state, and gradients of a random sum of both, in at least float32."""
    output, state = _parts(function(**inputs, **others))
    outcomes = {"output": output} if state is None else {"output": output, "state": state}
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for outcome in outcomes.values():
        weights = torch.randn(outcome.shape, generator=generator, dtype=torch.float64).to(outcome.dtype)
        total = total + (outcome * weights).sum() if outcome.requires_grad else total
    gradients = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
    for (name, value), gradient in zip(inputs.items(), gradients, strict=True):
        outcomes[f"gradient of {name}"] = torch.zeros_like(value) if gradient is None else gradient
    return {
        name: value.detach().to(torch.promote_types(value.dtype, torch.float32)) for name, value in outcomes.items()
    }


def _parts(results: Any) -> tuple[Tensor, Tensor | None]:
    """Output and state of what a function returned.

    Raises:
        TypeError: it is neither a tensor nor a pair of tensors.
    """
    pair = results if isinstance(results, tuple) else (results, None)
    if len(pair) != 2 or not isinstance(pair[0], Tensor) or not isinstance(pair[1], Tensor | None):
        raise TypeError(f"found {type(results).__name__}, expected a tensor or a pair of tensors")
    return pair[0], pair[1]


def _relative(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Norm of the difference by the norm of `expected`, or by `floor` if that is larger; infinity for other shapes."""
    if found.shape != expected.shape:
        return math.inf
    found, expected = found.detach(), expected.detach()
    difference, size = float((found - expected).norm()), max(float(expected.norm()), floor)
    error = difference / size if size else difference
    return error if math.isfinite(error) else math.inf


def _replacement(operation: Operation) -> Function:
    """The function that `substitution.rewrite` writes, by itself."""
    signature = ", ".join(f"{name}=None" for name in operation.roles.values())
    body = "".join(f"    {line}\n" for line in statements(operation, "kernel"))
    return _defined(f"def replacement({signature}):\n{body}", kernel_of(operation))


@cache
def _defined(text: str, kernel: str) -> Function:
    scope: dict[str, Any] = {"torch": torch, "kernel": _KERNELS[kernel]}
    exec(text, scope)  # our own text
    function: Function = scope["replacement"]
    return function


def _published(source: str, candidate: Candidate, dtype: torch.dtype | None) -> Function:
    """The program's function, its casts to a lower precision replaced by casts to `dtype`, as it stands for None."""
    text = source if dtype is None else _lifted(source, candidate, dtype)
    found: Any = sys.modules[load_class(text).__module__]
    for part in candidate.name.split("."):
        found = getattr(found, part)
    function: Function = found
    return function


def _lifted(source: str, candidate: Candidate, dtype: torch.dtype) -> str:
    """Replaces `torch.bfloat16`, `x.half()` and the like inside one function."""
    low = _LOW | (_SINGLE if dtype == torch.float64 else set())
    node = dict(functions(parse(source))).get(candidate.name)
    if node is None:
        raise DesignError(f"found no function {candidate.name} that is defined once, expected one to measure")
    lines = [line.encode() for line in lines_of(source)]
    # From the end, so that a change does not move the next.
    for each in sorted(_casts(node, low), key=lambda n: (n.end_lineno, n.end_col_offset), reverse=True):
        assert each.end_lineno is not None
        assert each.end_col_offset is not None
        line = lines[each.end_lineno - 1]
        if isinstance(each, ast.Call):
            assert isinstance(each.func, ast.Attribute)
            start, text = line.rindex(b".", 0, each.end_col_offset), f".to({dtype})"
        else:
            start, text = each.col_offset, str(dtype)
        lines[each.end_lineno - 1] = line[:start] + text.encode() + line[each.end_col_offset :]
    return b"".join(lines).decode()


def _casts(node: ast.AST, names: set[str]) -> Iterator[ast.Attribute | ast.Call]:
    """`torch.NAME`, and `x.NAME()` on one line."""
    for each in ast.walk(node):
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and not each.args:
            if each.func.attr in names and each.func.end_lineno == each.end_lineno:
                yield each
        elif isinstance(each, ast.Attribute) and each.attr in names and ast.unparse(each.value) == "torch":
            yield each
