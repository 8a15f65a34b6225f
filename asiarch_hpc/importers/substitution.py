"""Replaces a program's own recurrence by the operation of `kernels/` that computes the same.

Published programs carry their recurrence as a loop over chunks or tokens. `candidates` finds such functions in the
syntax tree and `rewrite` replaces one in the text: neither runs anything of the program nor needs torch. In between,
`measure` runs the function on random numbers and tells which operation it equals, and how exactly.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from asiarch_hpc.designs.hashing import parse
from asiarch_hpc.errors import DesignError
from asiarch_hpc.importers.recurrences import Candidate, Function, candidates, functions, lines_of, names_in

__all__ = ["Agreement", "Candidate", "Operation", "candidates", "measure", "rewrite"]

# Operands of the known operations, beside an initial state. `decay` is one number a head and token, `decays` one a
# channel of the key.
OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "delta_rule": ("q", "k", "v", "beta"),
    "gated_delta_rule": ("q", "k", "v", "beta", "decay"),
    "linear_attention": ("q", "k", "v"),
    "decayed_linear_attention": ("q", "k", "v", "decay"),
    "gated_linear_attention": ("q", "k", "v", "decays"),
    "moving_average": ("v", "decay"),
}
NORMS: Mapping[str, str] = {
    "l2": "x * (x.square().sum(-1, keepdim=True) + 1e-06).rsqrt()",
    "unit": "x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)",
}


State = Literal["none", "kept", "detached"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """An operation of `kernels/`, and in which way a function states it.

    Attributes:
        name: one of `OPERATIONS`.
        roles: the function's parameter for each operand, and for "initial_state" where it takes one.
        optional: parameters among these that may be None.
        heads_first: operands are [batch, heads, length, dim], else [batch, length, heads, dim].
        norms: how the function itself normalises "q" and "k", where it does (`NORMS`).
        scaled: the output is divided by the square root of the key's dimension.
        logarithmic: decays are given as logarithms.
        state: what is returned beside the output.
    """

    name: str
    roles: Mapping[str, str]
    optional: tuple[str, ...] = ()
    heads_first: bool = True
    norms: Mapping[str, str] = field(default_factory=dict)
    scaled: bool = False
    logarithmic: bool = False
    state: State = "kept"


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How exactly a function equals an operation; `records.to_json` and `from_json` carry it between processes.

    Attributes:
        function: the candidate's name.
        operation: the closest one; None where no operation takes the function's operands.
        error: the largest of `errors`; None where there is no operation or something is not finite.
        errors: worst relative difference of "output", "state" and "gradient of <parameter>", in `dtypes`, over all
            cases. The function's own casts to a lower precision are lifted, so what is compared is mathematics.
        others: relative difference of the output of the other operations that take the operands, in one case.
        as_written: worst relative difference with the function's own casts, in `precision`: its rounding.
        precision: "float32", or "bfloat16" under autocast for a function that works in that alone.
        lengths, dtypes: what was measured.
        reason: why nothing was measured, or what was not finite.
    """

    function: str
    operation: Operation | None = None
    error: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)
    as_written: float | None = None
    precision: str = ""
    lengths: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    reason: str = ""

    def agrees(self, tolerance: float) -> bool:
        """Whether every difference lies below `tolerance`."""
        return self.error is not None and self.error < tolerance


def measure(source: str, candidate: Candidate, *, seed: int) -> Agreement:
    """Compares a function with every operation that takes its operands, on random numbers drawn from `seed`.

    It runs the program's text: call it inside the gate's sandbox alone.

    Raises:
        DesignError: the program's file does not run.
    """
    from asiarch_hpc.importers import agreement  # needs torch, unlike the rest of this module

    return agreement.measure(source, candidate, seed=seed)


def rewrite(source: str, candidate: Candidate, operation: Operation) -> str:
    """The program with the body of one function replaced by a call of the operation, and the import that it needs.

    All other bytes stay. The same arguments give the same text.

    Raises:
        DesignError: not valid Python, no such function, or an operation of other operands.
    """
    _check(candidate, operation)
    tree = parse(source)
    function = dict(functions(tree)).get(candidate.name)
    if function is None:
        raise DesignError(f"found no function {candidate.name} that is defined once, expected one to replace")
    lines = lines_of(source)
    first, last = _span(function)
    newline = "\r\n" if lines[first - 2].endswith("\r\n") else "\n"
    indent = re.match(r"\s*", lines[first - 1])
    assert indent is not None
    name, imports = _imports(tree, operation)
    end = newline if lines[last - 1].endswith(("\r", "\n")) else ""
    body = newline.join(indent[0] + line for line in statements(operation, name)) + end
    lines[first - 1 : last] = [body]
    at = _after_imports(tree)
    lines[at:at] = [line + newline for line in imports]
    return "".join(lines)


def statements(operation: Operation, kernel: str) -> list[str]:
    """Body of a function that calls the operation under the name `kernel`; it needs `torch` beside it."""
    roles = operation.roles
    average = operation.name == "moving_average"
    factors = ("decay" in roles or "decays" in roles) and not operation.logarithmic
    lines = ['"""The operation of `kernels` that the published function was measured to equal."""']
    norms = _norms_in_text(operation)
    if norms or factors:
        lines += ["def _wide(x):", "    return x.to(torch.promote_types(x.dtype, torch.float32))"]
    for norm in sorted(set(norms.values())):
        lines += [f"def _{norm}(given):", "    x = _wide(given)", f"    return ({NORMS[norm]}).to(given.dtype)"]
    if factors:
        lines += ["def _log(x):", "    x = _wide(x)", "    return x.clamp_min(torch.finfo(x.dtype).tiny).log()"]
    if average:
        gate = f"{roles['decay']}.exp()" if operation.logarithmic else roles["decay"]
        lines += [f"_gate = {_laid(operation, gate)}.unsqueeze(-1)"]
    lines += [f"_output, _state = {kernel}(", *(f"    {operand}," for operand in _operands(operation)), ")"]
    output = "_output.transpose(1, 2)" if operation.heads_first else "_output"
    if operation.state == "none":
        return [*lines, f"return {output}"]
    state = f"_state{'.squeeze(2)' if average else ''}.to({roles['v']}.dtype)"
    return [*lines, f"return {output}, {state}{'.detach()' if operation.state == 'detached' else ''}"]


def kernel_of(operation: Operation) -> str:
    """The function of `kernels` that computes an operation; its package has the same name."""
    return "delta_rule" if "beta" in operation.roles else "linear_attention"


def _operands(operation: Operation) -> Iterator[str]:
    """Arguments of the kernel, as text; the kernel has [batch, length, heads, dim]."""
    roles = operation.roles
    average = operation.name == "moving_average"
    norms = _norms_in_text(operation)
    if average:  # h = g h + (1 - g) v is linear attention with keys of one dimension
        yield from ("torch.ones_like(_gate)", "1 - _gate", _laid(operation, roles["v"]))
    for operand in () if average else ("q", "k", "v", "beta"):
        if operand in roles:
            norm = norms.get(operand)
            yield _laid(operation, f"_{norm}({roles[operand]})" if norm else roles[operand])
    for operand in ("decay", "decays"):
        if operand in roles:
            logarithm = roles[operand] if operation.logarithmic else f"_log({roles[operand]})"
            yield f"log_decay={_or_none(operation, roles[operand], _laid(operation, logarithm))}"
    if "initial_state" in roles:
        state = roles["initial_state"]
        yield f"initial_state={_or_none(operation, state, f'{state}.unsqueeze(2)' if average else state)}"
    if not operation.scaled:
        yield "scale=1.0"
    if operation.norms and not norms:
        yield "normalise=True"


def _norms_in_text(operation: Operation) -> Mapping[str, str]:
    """The norms of q and k; none where the kernel has them, as it does so in registers."""
    in_kernel = kernel_of(operation) == "delta_rule" and dict(operation.norms) == {"q": "l2", "k": "l2"}
    return {} if in_kernel else operation.norms


def _laid(operation: Operation, operand: str) -> str:
    return f"{operand}.transpose(1, 2)" if operation.heads_first else operand


def _or_none(operation: Operation, parameter: str, value: str) -> str:
    return f"None if {parameter} is None else {value}" if parameter in operation.optional else value


def _check(candidate: Candidate, operation: Operation) -> None:
    """Raises DesignError unless the operation's names are known ones: it may come from another process."""
    operands = {*OPERATIONS.get(operation.name, ()), "initial_state"}
    parameters = {*candidate.tensors, *candidate.optional}
    sound = operation.name in OPERATIONS and operands - {"initial_state"} <= set(operation.roles) <= operands
    sound = sound and set(operation.roles.values()) == parameters and set(operation.optional) <= parameters
    if not sound or not set(operation.norms) <= {"q", "k"} or not set(operation.norms.values()) <= set(NORMS):
        raise DesignError(f"{candidate.name}: found {operation}, expected an operation that takes {sorted(parameters)}")


def _span(function: Function) -> tuple[int, int]:
    """First and last line of a function's body."""
    first = function.body[0]
    decorators = first.decorator_list if isinstance(first, Function | ast.ClassDef) else []
    assert function.end_lineno is not None
    return min([first.lineno, *(d.lineno for d in decorators)]), function.end_lineno


def _imports(tree: ast.Module, operation: Operation) -> tuple[str, list[str]]:
    """The kernel's name in the program, and the imports to add."""
    kernel = kernel_of(operation)
    module = f"kernels.{kernel}"
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == module and not node.level:
            for alias in node.names:
                if alias.name == kernel:
                    return alias.asname or kernel, []
    taken = {n.name for n in ast.walk(tree) if isinstance(n, Function | ast.ClassDef)}
    taken |= names_in(tree) | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    taken |= {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
    name = kernel
    while name in taken:
        name = f"kernel_{name}"
    added = [f"from {module} import {kernel}" + (f" as {name}" if name != kernel else "")]
    modules = [alias for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    if not any(alias.name.partition(".")[0] == "torch" and alias.asname is None for alias in modules):
        added.insert(0, "import torch")
    return name, added


def _after_imports(tree: ast.Module) -> int:
    """How many lines stand before the first statement that is neither an import nor the module's docstring."""
    lines = 0
    for number, node in enumerate(tree.body):
        docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not docstring and not isinstance(node, ast.Import | ast.ImportFrom):
            break
        assert node.end_lineno is not None
        lines = node.end_lineno
    return lines
