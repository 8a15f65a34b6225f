"""What a design shows when it runs. Everything here happens inside the sandbox's child.

Every check goes on where another one failed, so that one report names every independent fault. A design's code may
raise anything, `SystemExit` included; what it raises becomes a finding, but for a refused allocation, which ends
the call with the sandbox's own finding. Comparisons are written so that NaN fails them.
"""

from __future__ import annotations

import copy
import math
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asiarch_hpc.config import GateConfig
from asiarch_hpc.errors import DesignError
from asiarch_hpc.gate.causality import examine_causality
from asiarch_hpc.gate.family import is_out_of_memory
from asiarch_hpc.gate.measure import Measurement, measure
from asiarch_hpc.records import Finding, Json, Severity, to_json

T = TypeVar("T")

_FAILURE_HINTS = {
    "forward.failed": "Every batch size and every length from 1 up must work; do not assume multiples of a chunk.",
    "forward.shape": "Keep batch and length; pad to a chunk's multiple inside and cut the output back.",
    "forward.nonfinite": "Look for division by a sum or norm that can be 0, exp of large values, log or sqrt of "
    "values at or below 0.",
    "backward.failed": "Every operation between parameters and output must be differentiable and not in place.",
    "backward.nonfinite": "Look for sqrt or norm at 0 (add an epsilon inside), 0 * inf in where, growing products.",
    "construct.failed": "Make the constructor work at every width, and the same each time.",
}
_RELATIVE_NOISE = 0.1
_NAMES_SHOWN = 8
_MESSAGE_CHARS = 400


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A design, as what builds it, and what it is held against.

    `build(dim, depth)` returns a module with `forward(ids [batch, length] int64) -> (logits [batch, length, vocab],
    auxiliary loss or None)` and `non_embedding_parameters() -> int`. `size()` gives the (dim, depth) that matches
    the baseline; `reference_size` serves where it finds none. `text`: [rows, length + 1] token ids, the batch of
    each learning step.
    """

    config: GateConfig
    build: Callable[[int, int], nn.Module]
    size: Callable[[], tuple[int, int]]
    reference_size: tuple[int, int] | None
    vocab: int
    length: int
    target_parameters: int
    reference: Measurement | None
    text: Tensor
    seed: int


Step = Finding | str | dict[str, Any]  # a finding, the name of what comes next, or measured fields


def examine(subject: Subject) -> Iterator[Json]:
    """Runs all checks; yields {"stage": name}, {"finding": record} and {"measured": fields} as they come."""
    for step in _steps(subject):
        if isinstance(step, str):
            yield {"stage": step}
        elif isinstance(step, Finding):
            yield {"finding": to_json(step)}
        else:
            yield {"measured": step}


def _steps(subject: Subject) -> Iterator[Step]:
    yield "construction"
    found, refusal = attempt(subject.size)
    size = found or subject.reference_size
    if size is None:
        yield _size_refused(refusal)
        return
    dim, depth = size
    model, failure = attempt(lambda: _build(subject, dim, depth))
    if model is None:
        yield reject("construct.failed", f"dim {dim}, depth {depth}: {failure}", _FAILURE_HINTS["construct.failed"])
        return
    if found is None:
        yield _size_refused(refusal)
    yield {"dim": dim, "depth": depth}
    yield from _examine_size(subject, model)
    failures = Failures()
    # Real passes come before measuring: on the meta device an endless allocation would look like an endless loop.
    yield from _examine_passes(subject, _moved(subject, model), failures)
    yield "measurement"
    yield from _measure(subject, _build(subject, dim, depth), failures)
    yield from examine_causality(
        _copier(subject, dim, depth),
        vocab=subject.vocab,
        config=subject.config,
        seed=subject.seed,
        on_failure=failures.add,
        describe=describe,
    )
    yield from _learn(subject, dim, depth, failures)
    yield from failures.findings()


def attempt(function: Callable[[], T]) -> tuple[T | None, str]:
    """(result, "") or (None, what the design raised). A refused allocation is raised on."""
    try:
        return function(), ""
    except BaseException as error:
        if is_out_of_memory(error):
            raise
        return None, describe(error)


def describe(error: BaseException) -> str:
    """Type, message and line of the design (the last frame of code without a file) of an exception."""
    text = f"{type(error).__name__}: {str(error).strip()}"[:_MESSAGE_CHARS]
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith("<")]
    if places and not isinstance(error, DesignError):  # which names the line itself
        text += f" (line {places[-1].lineno}{f': {places[-1].line}' if places[-1].line else ''})"
    return text


def reject(code: str, message: str, hint: str, **numbers: float | None) -> Finding:
    return finding(code, "reject", message, hint, **numbers)


def finding(
    code: str,
    severity: Severity,
    message: str,
    hint: str,
    *,
    measured: float | None = None,
    limit: float | None = None,
) -> Finding:
    """A finding whose numbers are finite: what is not a number is said in the message."""
    if measured is not None and not math.isfinite(measured):
        measured = None
    return Finding(code=code, severity=severity, message=message, measured=measured, limit=limit, hint=hint)


class Failures:
    """Collects what fails alike in several cases into one finding: messages that differ by numbers are alike."""

    def __init__(self) -> None:
        self._cases: dict[tuple[str, str], list[str]] = {}
        self._messages: dict[tuple[str, str], str] = {}

    def add(self, code: str, case: str, message: str) -> None:
        key = (code, re.sub(r"\d+", "0", message))
        self._messages.setdefault(key, message)
        self._cases.setdefault(key, []).append(case)

    def findings(self) -> Iterator[Finding]:
        for key, cases in self._cases.items():
            yield reject(key[0], f"{self._messages[key]} [{shown(cases, '; ')}]", _FAILURE_HINTS[key[0]])


def shown(names: list[str], separator: str = ", ") -> str:
    """The first few names and how many more there are."""
    text = separator.join(names[:_NAMES_SHOWN])
    return text if len(names) <= _NAMES_SHOWN else f"{text}{separator}and {len(names) - _NAMES_SHOWN} more"


def move_parameters(model: nn.Module, noise: float, generator: torch.Generator) -> None:
    """Moves every parameter off its initial value, where zeros and equal values hide gradients and leaks."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel():
                size = parameter.square().mean().sqrt()
                step = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(step * (noise + _RELATIVE_NOISE * size))


def _build(subject: Subject, dim: int, depth: int) -> nn.Module:
    torch.manual_seed(subject.seed)
    return subject.build(dim, depth).train()


def _moved(subject: Subject, model: nn.Module) -> nn.Module:
    move_parameters(model, subject.config.parameter_noise, torch.Generator().manual_seed(subject.seed))
    return model


def _copier(subject: Subject, dim: int, depth: int) -> Callable[[], nn.Module]:
    """Gives equal models with moved parameters, that have never run."""
    original = _moved(subject, _build(subject, dim, depth))
    copied, _ = attempt(lambda: copy.deepcopy(original))
    if copied is not None:
        return lambda: copy.deepcopy(original)
    return lambda: _moved(subject, _build(subject, dim, depth))  # some modules cannot be copied


def _size_refused(reason: str) -> Finding:
    return reject("size.unmatched", reason, "Let the parameter count follow the width given to the constructor.")


def _examine_size(subject: Subject, model: nn.Module) -> Iterator[Step]:
    tolerance, target = subject.config.parameter_tolerance, subject.target_parameters
    count, failure = attempt(lambda: int(model.non_embedding_parameters()))  # type: ignore[operator]
    if count is None:
        yield reject("construct.failed", f"non_embedding_parameters: {failure}", "Return the number of parameters.")
        return
    yield {"parameters": count, "parameters_total": sum(p.numel() for p in model.parameters())}
    if not abs(count / target - 1) <= tolerance:
        yield reject(
            "size.parameters",
            f"{count:,} non-embedding parameters, the baseline has {target:,}; allowed within {tolerance:.0%}",
            "Let the parameter count follow the width given to the constructor.",
            measured=count / target,
            limit=1 + tolerance,
        )


def _measure(subject: Subject, model: nn.Module, failures: Failures) -> Iterator[Step]:
    cost, failure = attempt(lambda: measure(model, subject.vocab, subject.length, config=subject.config))
    if cost is None:
        failures.add("forward.failed", f"batch 1, length {subject.length}, without gradients", failure)
        return
    yield {
        "flops_per_token": cost.flops_per_token,
        "launches": cost.launches,
        "modelled_seconds_per_token": cost.modelled_seconds_per_token,
        "time_exponent": cost.time_exponent,
    }
    if subject.reference is None:
        return
    factor, limit = cost.flops_per_token / subject.reference.flops_per_token, subject.config.flops_tolerance
    if not 1 / limit <= factor <= limit:
        yield finding(
            "size.flops",
            "warn",
            f"{cost.flops_per_token:,.0f} FLOPs a token, {factor:.2f} times the baseline's",
            "Results at equal parameters but unequal arithmetic compare less fairly.",
            measured=factor,
            limit=limit,
        )


def _examine_passes(subject: Subject, model: nn.Module, failures: Failures) -> Iterator[Step]:
    """Forward and backward at all batch sizes and lengths, and what gradient each parameter gets from them."""
    generator = torch.Generator().manual_seed(subject.seed)
    alive: set[str] = set()
    broken: set[str] = set()
    passes = 0
    for batch in subject.config.batch_sizes:
        for length in subject.config.lengths:
            case = f"batch {batch}, length {length}"
            yield f"forward and backward at {case}"
            rows = torch.randint(subject.vocab, (batch, length + 1), generator=generator)
            loss = _loss(model, rows, subject.vocab, case, failures)
            if loss is None:
                continue
            _, failure = attempt(loss.backward)
            if failure:
                failures.add("backward.failed", case, failure)
                continue
            passes += 1
            for name, parameter in model.named_parameters():
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                    broken.add(name)
                elif parameter.grad is not None and bool(parameter.grad.any()):
                    alive.add(name)
            model.zero_grad(set_to_none=True)
    if broken:
        failures.add("backward.nonfinite", shown(sorted(broken)), "gradients are not finite")
    trained = [name for name, p in model.named_parameters() if p.requires_grad and p.numel()]
    dead = [name for name in trained if name not in alive | broken]
    if passes and dead:
        yield reject(
            "gradient.dead",
            f"{len(dead)} of {len(trained)} parameters get no gradient: {shown(dead)}",
            "Use the parameter in the output without detach, argmax or rounding in between, or leave it out.",
            measured=len(dead),
            limit=0,
        )


def _loss(model: nn.Module, rows: Tensor, vocab: int, case: str, failures: Failures) -> Tensor | None:
    """Cross-entropy of the next token plus the auxiliary loss; None after a failure, which is recorded."""
    answer, failure = attempt(lambda: model(rows[:, :-1]))
    if failure:
        failures.add("forward.failed", case, failure)
        return None
    expected = (rows.shape[0], rows.shape[1] - 1, vocab)
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Tensor)):
        failures.add("forward.shape", case, f"forward returned {type(answer).__name__}, expected (logits, loss)")
        return None
    logits, auxiliary = answer
    if tuple(logits.shape) != expected or not logits.is_floating_point():
        failures.add("forward.shape", case, f"logits {list(logits.shape)} {logits.dtype}, expected {list(expected)}")
        return None
    loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
    loss = loss if auxiliary is None else loss + auxiliary
    if not (bool(logits.isfinite().all()) and math.isfinite(float(loss.detach()))):
        share = 1 - float(logits.isfinite().float().mean())
        what = f"{share:.1%} of the outputs are not finite" if share else "the auxiliary loss is not finite"
        failures.add("forward.nonfinite", case, what)
        return None
    return loss


def _learn(subject: Subject, dim: int, depth: int, failures: Failures) -> Iterator[Step]:
    """A few optimiser steps on real text, from fresh weights, must lower its loss."""
    config = subject.config
    yield "learning"
    model, failure = attempt(lambda: _build(subject, dim, depth))
    if model is None:
        failures.add("construct.failed", "second construction", failure)
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.learn_rate, weight_decay=0.0)
    losses: list[float] = []
    worst = 0.0
    for step in range(config.learn_steps + 1):
        loss = _loss(model, subject.text, subject.vocab, f"optimiser step {step}", failures)
        if loss is None:
            return
        losses.append(float(loss.detach()))
        if step == config.learn_steps:
            break
        optimiser.zero_grad(set_to_none=True)
        _, failure = attempt(loss.backward)
        if failure:
            failures.add("backward.failed", f"optimiser step {step}", failure)
            return
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip))
        if not math.isfinite(norm):
            failures.add("backward.nonfinite", f"optimiser step {step}", "the gradient's norm is not finite")
            return
        worst = max(worst, norm)
        optimiser.step()
    if not worst <= config.grad_norm_limit:
        yield reject(
            "learn.gradient_norm",
            f"the gradient's norm reached {worst:.3g}, at most {config.grad_norm_limit:.3g} is allowed",
            "Normalise the inputs of products and of recurrences; keep decays within 0 and 1.",
            measured=worst,
            limit=config.grad_norm_limit,
        )
    drop = 1 - losses[-1] / losses[0]
    if not drop >= config.learn_drop:
        yield reject(
            "learn.no_progress",
            f"{config.learn_steps} steps took the loss from {losses[0]:.3f} to {losses[-1]:.3f} nats",
            "Keep a residual path and normalised activations, so that gradients reach the embedding.",
            measured=drop,
            limit=config.learn_drop,
        )
