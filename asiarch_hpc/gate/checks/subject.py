"""A design under examination, and the words in which checks speak of it.

A design's code may raise anything, `SystemExit` included; `attempt` turns what it raises into a text, but for a
refused allocation, which ends the call with the sandbox's own finding. Comparisons are written so that NaN fails
them.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from asiarch_hpc.config import GateConfig
from asiarch_hpc.errors import DesignError
from asiarch_hpc.gate.sandbox.family import is_out_of_memory
from asiarch_hpc.records import Finding, Severity

T = TypeVar("T")
Mode = Literal["eval", "train"]
Precision = Literal["fp32", "bf16"]
Step = Finding | str | dict[str, Any]  # a finding, the name of what comes next, or measured fields

MODES: tuple[Mode, ...] = ("eval", "train")
_FAILURE_HINTS = {
    "forward.failed": "Repair what the message names. Every batch size and every length from 1 up must work: where "
    "only some cases fail, look for multiples of a chunk, a fixed length or a fixed batch.",
    "forward.shape": "Keep batch and length; pad to a chunk's multiple inside and cut the output back.",
    "forward.dtype": "Return the dtype of the input: what is computed in another one is cast back at the end.",
    "forward.nonfinite": "Look for division by a sum or norm that can be 0, exp of large values, log or sqrt of "
    "values at or below 0.",
    "backward.failed": "Every operation between parameters and output must be differentiable and not in place.",
    "backward.nonfinite": "Look for sqrt or norm at 0 (add an epsilon inside), 0 * inf in where, growing products.",
    "construct.failed": "Make the constructor work at every width, and the same each time.",
    "construct.width": "Derive every size from the width and the heads given to the constructor.",
}
_RELATIVE_NOISE = 0.1
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio
_NAMES_SHOWN = 8
_MESSAGE_CHARS = 400


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A design, as what builds it, and what it is held against.

    `build(dim, depth, vocab)` returns a module with `forward(ids [batch, length] int64) -> (logits [batch, length,
    vocab], auxiliary loss or None)` and `non_embedding_parameters() -> int`; where the design asks for documents, its
    `asks_for_documents` is true and forward takes them as well. `size()` gives the (dim, depth) that matches the
    baseline; `reference_size` serves where it finds none. `build_reference` builds the baseline, as
    `build` does; None for the baseline itself. `text`: [rows, length + 1] token ids, the batch of each learning
    step. `precision` is the one that the scale trains in. `chunks` are sizes that the design's text names,
    `claims` the abilities that it claims; `attention` allows quadratic cost.
    """

    config: GateConfig
    build: Callable[[int, int, int], nn.Module]
    build_reference: Callable[[int], nn.Module] | None
    size: Callable[[], tuple[int, int]]
    reference_size: tuple[int, int] | None
    vocab: int
    length: int
    target_parameters: int
    text: Tensor
    seed: int
    precision: Precision
    attention: bool
    chunks: tuple[int, ...] = ()
    claims: frozenset[str] = frozenset()


class Specimen:
    """A design built at its size: gives models, runs them, and collects what fails in several cases alike.

    `precision` is the one that comparisons are made in: fp32 unless the design works in bf16 alone.
    """

    def __init__(self, subject: Subject, dim: int, depth: int, device: str) -> None:
        self.subject = subject
        self.config = subject.config
        self.dim, self.depth = dim, depth
        self.device = device
        self.precision: Precision = "fp32"
        self.vocab = min(subject.vocab, subject.config.probe_vocab)  # embedding and head are not the design's
        self.failures = Failures()
        self._original: nn.Module | None = None
        self._copied = False

    @cached_property
    def asks_for_documents(self) -> bool:
        """Whether the design looks at which documents tokens are of."""
        return bool(getattr(self.fresh(), "asks_for_documents", False))

    @property
    def tolerance(self) -> float:
        """Largest change relative to the outputs' scale that rounding may cause."""
        return self.config.tolerance_bf16 if self.precision == "bf16" else self.config.tolerance

    @property
    def longest(self) -> int:
        """A length beyond the second chunk of every size that the design's text names and not below the scale's,
        within bounds."""
        beyond = max((2 * chunk + 2 for chunk in self.subject.chunks), default=0)
        wanted = max(self.config.causality_length, self.config.far_length, self.subject.length, beyond)
        return min(wanted, self.config.longest)

    def build(self, vocab: int | None = None) -> nn.Module:
        """A new model in training mode with fresh weights; always the same ones."""
        torch.manual_seed(self.subject.seed)
        model = self.subject.build(self.dim, self.depth, self.vocab if vocab is None else vocab)
        return model.to(self.device).train()

    def fresh(self) -> nn.Module:
        """A model that has never run, its parameters moved off degenerate initial values; always an equal one."""
        if self._original is None:
            self._original = self._moved()
            copied, _ = attempt(lambda: copy.deepcopy(self._original))
            self._copied = copied is not None
            if copied is not None:
                return copied
        return copy.deepcopy(self._original) if self._copied else self._moved()  # some modules cannot be copied

    def ids(self, batch: int, length: int, generator: torch.Generator) -> Tensor:
        """[batch, length] int64 random tokens on the CPU."""
        return torch.randint(self.vocab, (batch, length), generator=generator)

    def documents(self, batch: int, length: int, generator: torch.Generator) -> Tensor:
        """[batch, length] int32 on the CPU, which documents the tokens of packed rows are of: counted from 0, of random
        lengths, and in the last row padding, -1, at the end."""
        begins = torch.rand((batch, length), generator=generator) < 1 / self.config.document_length
        begins[:, 0] = False
        documents = begins.int().cumsum(1, dtype=torch.int32)
        documents[-1, length - length // 8 :] = -1
        return documents

    def generator(self, offset: int = 0) -> torch.Generator:
        """A source of tokens and perturbations; equal offsets give equal ones."""
        return torch.Generator().manual_seed(self.subject.seed + offset)

    def logits(
        self, model: nn.Module, ids: Tensor, mode: Mode, *, seed: int = 0, documents: Tensor | None = None
    ) -> Tensor:
        """[batch, length, vocab] fp32 without gradients to the caller, computed from the same random state each
        time; in training mode with gradients recorded inside, as in training."""
        model.train(mode == "train")
        set_random_state(seed)
        with torch.set_grad_enabled(mode == "train"), self.autocast():
            answer = model(ids.to(self.device), *self.beside(documents))[0]
        return torch.as_tensor(answer).detach().float()

    def beside(self, documents: Tensor | None) -> tuple[Tensor, ...]:
        """What a model is given beside the ids."""
        return () if documents is None else (documents.to(self.device),)

    def answer(
        self, model: nn.Module, ids: Tensor, mode: Mode, *, seed: int = 0, documents: Tensor | None = None
    ) -> Tensor | None:
        """`logits`, or None where there are none for every token, or not finite ones: that failure is recorded."""
        case = f"batch {ids.shape[0]}, length {ids.shape[1]}, {mode} mode{', documents' * (documents is not None)}"
        logits, failure = attempt(lambda: self.logits(model, ids, mode, seed=seed, documents=documents))
        if logits is None:
            self.failures.add("forward.failed", case, failure)
        elif logits.shape[:-1] != ids.shape:
            text = f"logits {list(logits.shape)} {logits.dtype}, expected {list(ids.shape)}"
            self.failures.add("forward.shape", case, text)
        elif not all_finite(logits):
            self.failures.add("forward.nonfinite", case, "outputs are not finite")
        else:
            return logits
        return None

    @contextlib.contextmanager
    def autocast(self, precision: Precision | None = None) -> Iterator[None]:
        """The precision's arithmetic, `self.precision` by default."""
        if (precision or self.precision) == "fp32":
            yield
        else:
            with torch.autocast(self.device, dtype=torch.bfloat16):
                yield

    def ability(
        self, code: str, claim: str, found: str, hint: str, *, otherwise: Severity, **numbers: float | None
    ) -> Finding:
        """A missing ability: rejected where the design claims it."""
        claimed = claim in self.subject.claims
        text = f"{found}, though CLAIMS names {claim}" if claimed else found
        return finding(code, "reject" if claimed else otherwise, text, hint, **numbers)

    def _moved(self) -> nn.Module:
        model = self.build()
        move_parameters(model, self.config.parameter_noise, torch.Generator().manual_seed(self.subject.seed))
        return model


def set_random_state(seed: int) -> None:
    """Seeds torch and Python, small numbers far apart: a first draw must not be the same for all of them."""
    mixed = (seed + 1) * _SPREAD % 2**63
    torch.manual_seed(mixed)
    random.seed(mixed)


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
        cases = self._cases.setdefault(key, [])
        if case not in cases:
            cases.append(case)

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


def change_per_position(base: Tensor, other: Tensor, scale: float) -> Tensor:
    """Largest change of each row at each position, relative to `scale`; [batch, length], both inputs
    [batch, length, vocab]."""
    return (other - base).abs_().amax(dim=-1) / max(scale, torch.finfo(torch.float32).tiny)


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is infinite or not a number."""
    if tensor.is_complex() or tensor.layout is not torch.strided or not tensor.numel():
        return bool(tensor.isfinite().all())
    # Both pass on what is not a number; one pass over the tensor, where isfinite makes several and new tensors.
    low, high = tensor.detach().aminmax()
    return math.isfinite(low) and math.isfinite(high)


def largest(change: Tensor) -> float:
    """The maximum; infinity when anything is not a number."""
    return float(change.nan_to_num(nan=float("inf"), posinf=float("inf")).max()) if change.numel() else 0.0
