"""Forward and backward at all batch sizes and lengths, in both precisions, and the gradient each parameter gets."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from asiarch_hpc.gate.checks.subject import Precision, Specimen, Step, all_finite, attempt, reject, shown

_PROBE_LENGTH = 33
_PACKED_ROWS = 2  # one full, one with padding


def examine_passes(specimen: Specimen) -> Iterator[Step]:
    """Findings on dead parameters; what fails in several cases alike goes to `specimen.failures`.

    Designs that ask for documents also have a pass with them, as in training.
    """
    config, generator = specimen.config, specimen.generator()
    model = specimen.fresh()
    _examine_dtype(specimen, model)
    yield from _examine_registration(specimen)
    gradients = _Gradients()
    lengths = sorted({*config.lengths, specimen.longest})
    other: tuple[Precision, ...] = ("bf16",) if specimen.precision == "fp32" else ()
    for precision in (specimen.precision, *other):
        # The second precision is a matter of dtypes and ranges: one batch size shows it.
        batches = config.batch_sizes if precision == specimen.precision else config.batch_sizes[-1:]
        for batch in batches:
            for length in lengths:
                case = f"batch {batch}, length {length}" + ("" if precision == "fp32" else f", {precision}")
                yield f"forward and backward at {case}"
                rows = specimen.ids(batch, length + 1, generator)
                if backward(specimen, model, rows, case, precision):
                    gradients.add(model)
                model.zero_grad(set_to_none=True)
        if specimen.asks_for_documents and precision in (specimen.precision, specimen.subject.precision):
            batch, length = _PACKED_ROWS, specimen.subject.length
            case = f"batch {batch}, length {length}, documents" + ("" if precision == "fp32" else f", {precision}")
            yield f"forward and backward at {case}"
            rows, documents = specimen.ids(batch, length + 1, generator), specimen.documents(batch, length, generator)
            if backward(specimen, model, rows, case, precision, documents):
                gradients.add(model)
            model.zero_grad(set_to_none=True)
    yield from gradients.findings(specimen, model)


def backward(
    specimen: Specimen,
    model: nn.Module,
    rows: Tensor,
    case: str,
    precision: Precision,
    documents: Tensor | None = None,
) -> bool:
    """One forward and backward pass over [batch, length + 1] tokens, of `documents` [batch, length]; False after a
    failure, which is recorded."""
    loss = training_loss(specimen, model, rows, case, precision, documents)
    if loss is None:
        return False
    _, failure = attempt(loss.backward)
    if failure:
        specimen.failures.add("backward.failed", case, failure)
    return not failure


def training_loss(
    specimen: Specimen,
    model: nn.Module,
    rows: Tensor,
    case: str,
    precision: Precision | None = None,
    documents: Tensor | None = None,
) -> Tensor | None:
    """Cross-entropy of the next token plus the auxiliary loss, in nats; None after a failure, which is recorded."""
    failures = specimen.failures
    rows = rows.to(specimen.device)
    with specimen.autocast(precision):
        answer, failure = attempt(lambda: model(rows[:, :-1], *specimen.beside(documents)))
    if failure:
        failures.add("forward.failed", case, failure)
        return None
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Tensor)):
        failures.add("forward.shape", case, f"forward returned {type(answer).__name__}, expected (logits, loss)")
        return None
    logits, auxiliary = answer
    expected = (rows.shape[0], rows.shape[1] - 1)
    if tuple(logits.shape[:-1]) != expected or not logits.is_floating_point():
        failures.add("forward.shape", case, f"logits {list(logits.shape)} {logits.dtype}, expected {list(expected)}")
        return None
    loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
    loss = loss if auxiliary is None else loss + auxiliary
    if not (all_finite(logits) and math.isfinite(float(loss.detach()))):
        share = 1 - float(logits.isfinite().float().mean())
        what = f"{share:.1%} of the outputs are not finite" if share else "the auxiliary loss is not finite"
        failures.add("forward.nonfinite", case, what)
        return None
    return loss


class _Gradients:
    """Which parameters have had a gradient in any of the passes, and which a broken one."""

    def __init__(self) -> None:
        self._passes = 0
        self._alive: set[str] = set()
        self._broken: set[str] = set()

    def add(self, model: nn.Module) -> None:
        self._passes += 1
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not all_finite(parameter.grad):
                self._broken.add(name)
            elif parameter.grad is not None and bool(parameter.grad.any()):
                self._alive.add(name)

    def findings(self, specimen: Specimen, model: nn.Module) -> Iterator[Step]:
        if self._broken:
            names = shown(sorted(self._broken))
            specimen.failures.add("backward.nonfinite", names, "gradients are not finite")
        trained = [name for name, p in model.named_parameters() if p.requires_grad and p.numel()]
        dead = [name for name in trained if name not in self._alive | self._broken]
        if self._passes and dead:
            yield reject(
                "gradient.dead",
                f"{len(dead)} of {len(trained)} parameters get no gradient: {shown(dead)}",
                "Use the parameter in the output without detach, argmax or rounding in between, or leave it out.",
                measured=len(dead),
                limit=0,
            )


def _examine_registration(specimen: Specimen) -> Iterator[Step]:
    """What the outputs are differentiated by must be parameters: all else is neither trained nor counted."""
    model = specimen.fresh()
    ids = specimen.ids(2, _PROBE_LENGTH, specimen.generator())
    answer, _ = attempt(lambda: training_loss(specimen, model, ids, "the look for unregistered weights"))
    if answer is None or answer.grad_fn is None:
        return  # the passes report that
    known = {id(parameter) for parameter in model.parameters()}
    seen, queue, strange = {answer.grad_fn}, [answer.grad_fn], []
    while queue:
        node = queue.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and id(leaf) not in known:
            strange.append(f"{list(leaf.shape)}")
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
    if strange:
        yield reject(
            "gradient.unregistered",
            f"{len(strange)} tensors that the outputs are differentiated by are no parameters of the model, of shapes "
            f"{shown(sorted(strange))}: they are neither trained nor counted nor saved",
            "Keep modules in nn.ModuleList or nn.ModuleDict, tensors as nn.Parameter attributes made in __init__.",
            measured=len(strange),
            limit=0,
        )


def _examine_dtype(specimen: Specimen, model: nn.Module) -> None:
    """In fp32 each block must return the dtype that it was given."""
    blocks = getattr(model, "blocks", None)
    if specimen.precision != "fp32" or not isinstance(blocks, nn.ModuleList):
        return
    changed: list[str] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.dtype != inputs[0].dtype:
            changed.append(f"a block was given {inputs[0].dtype} and returned {first.dtype}")

    hooks = [block.register_forward_hook(look) for block in blocks]
    attempt(lambda: model(specimen.ids(2, _PROBE_LENGTH, specimen.generator()).to(specimen.device)))
    for hook in hooks:
        hook.remove()
    for message in changed[:1]:
        specimen.failures.add("forward.dtype", f"batch 2, length {_PROBE_LENGTH}", message)
