"""Whether gradients of earlier outputs reach the embeddings of later tokens.

Perturbation sees what is large beside the outputs; a gradient sees smaller shares, since in exact arithmetic it is
zero. Only transforms over the whole length, and sums minus sums, round it to something else: beside the largest
gradient of all outputs this was measured as below 2e-6 for FFT convolutions and for a total minus a sum from the end,
with 2 and 8 layers and 130 and 1026 tokens, in fp32 and under bf16 autocast, and as 1.4e-5 at worst, where three
unnormalised FFT convolutions multiply each other in each of 8 layers. The tolerance of 2e-5 is above that, and catches
most single looks ahead of a share of 1e-4, and a mean over later tokens of a share of 1e-3.

One forward pass serves several backward passes, each with another last position t for every row. A row that seems to
leak is looked at alone, so that a mixing of rows is not taken for a leak.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from asiarch_hpc.gate.checks.causality import probe_positions
from asiarch_hpc.gate.checks.subject import (
    MODES,
    Mode,
    Specimen,
    Step,
    all_finite,
    attempt,
    largest,
    reject,
    set_random_state,
)


@dataclass(frozen=True, slots=True)
class _Leak:
    mode: Mode
    length: int
    after: int  # the last position whose output was looked at
    source: int  # the later position with the largest gradient
    share: float  # its size beside the largest gradient of all outputs
    documents: bool  # whether they were given


def examine_gradients(specimen: Specimen) -> Iterator[Step]:
    """At most one finding, causality.gradient. Models without an embedding of the ids, or whose backward pass does
    not work, are passed over: the passes report the latter. Designs that ask for documents are looked at with them as
    well, as in training."""
    config, rng = specimen.config, random.Random(specimen.subject.seed + 1)
    leaks: list[_Leak] = []
    lengths = sorted({config.causality_length, specimen.longest})
    cases = [(mode, length, config.border_positions, False) for mode in MODES for length in lengths]
    if specimen.asks_for_documents:
        cases.append(("train", config.causality_length, config.document_rows, True))
    for mode, length, count, documents in cases:
        yield f"gradients of later tokens in {mode} mode at length {length}{', documents' * documents}"
        positions = probe_positions(length, specimen.subject.chunks, count, rng)
        probe = partial(_probe, specimen, mode, length, positions, documents=documents)
        found, _ = attempt(probe)
        if found and specimen.precision == "fp32":  # rounding that is amplified fades in fp64, a leak stays
            settled, failure = attempt(partial(probe, dtype=torch.float64))
            found = found if failure else settled
        leaks += found or []
    if not leaks:
        return
    worst = max(leaks, key=lambda leak: leak.share)
    modes = [mode for mode in MODES if any(leak.mode == mode for leak in leaks)]
    afters = sorted({leak.after for leak in leaks})
    given = "given documents, " if all(leak.documents for leak in leaks) else ""
    yield reject(
        "causality.gradient",
        f"{given}outputs up to t have a gradient by tokens after t, in {' and '.join(modes)} mode, for t = "
        f"{', '.join(map(str, afters[:8]))}{' …' if len(afters) > 8 else ''}; largest at length {worst.length} from "
        f"outputs up to {worst.after} to token {worst.source}, relative to the largest of all",
        "Something computed from later tokens reaches earlier outputs, if only by a small share: look for sums, norms "
        "and gates over the whole length or a whole chunk.",
        measured=worst.share,
        limit=config.gradient_tolerance,
    )


def _probe(
    specimen: Specimen,
    mode: Mode,
    length: int,
    positions: Sequence[int],
    *,
    documents: bool,
    dtype: torch.dtype = torch.float32,
) -> list[_Leak]:
    """Leaks at one length. As many rows as keep the graph as small as the other probes', each with its own t."""
    config, generator = specimen.config, specimen.generator(length)
    rows = max(1, min(len(positions), config.probe_rows * config.causality_length // length))
    ids = specimen.ids(rows, length, generator)
    given = specimen.documents(rows, length, generator) if documents else None
    embedded, logits = _forward(specimen, specimen.fresh().to(dtype), ids, mode, given)
    if logits.shape[:-1] != ids.shape or not all_finite(logits):
        return []  # the passes report that
    weights = torch.randn(logits.shape, generator=generator).to(logits)
    leaks = []
    for start in range(0, len(positions), rows):
        group = positions[start : start + rows]
        gradient = _gradient(embedded, logits, weights, dict(enumerate(group)))
        if not all_finite(gradient):
            if mode == "train":
                specimen.failures.add("backward.nonfinite", f"embeddings, length {length}", "gradients are not finite")
            return []
        for row, after in enumerate(group):
            scale = float(gradient[row, : after + 1].norm(dim=-1).max())
            if _share(gradient[row], after, scale) <= config.gradient_tolerance:
                continue
            alone = _gradient(embedded, logits, weights, {row: after})[row]
            scale = max(scale, float(_gradient(embedded, logits, weights, {row: length})[row].norm(dim=-1).max()))
            share = _share(alone, after, scale)
            if not share <= config.gradient_tolerance:
                source = after + 1 + int(alone[after + 1 :].norm(dim=-1).argmax())
                leaks.append(_Leak(mode, length, after, source, share, documents))
            if len(leaks) >= config.confirmations:
                return leaks
    return leaks


def _forward(
    specimen: Specimen, model: nn.Module, ids: Tensor, mode: Mode, documents: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(embeddings [batch, length, dim], logits [batch, length, vocab]) of one pass that recorded its graph.

    Raises:
        LookupError: no embedding in the model was given the ids.
    """
    captured: list[Tensor] = []

    def capture(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if captured or inputs[0].shape != ids.shape:
            return None
        captured.append(output.detach().requires_grad_())
        return captured[0].clone()  # a copy, since the model may change it in place

    hooks = [part.register_forward_hook(capture) for part in model.modules() if isinstance(part, nn.Embedding)]
    model.train(mode == "train")
    set_random_state(0)
    with torch.enable_grad(), specimen.autocast():
        logits = model(ids.to(specimen.device), *specimen.beside(documents))[0]
    for hook in hooks:
        hook.remove()
    if not captured:
        raise LookupError("no embedding was given the ids")
    return captured[0], logits if logits.dtype == torch.float64 else logits.float()


def _gradient(embedded: Tensor, logits: Tensor, weights: Tensor, lasts: dict[int, int]) -> Tensor:
    """[batch, length, dim] gradient by the embeddings of a random weighing of the outputs of each row up to its last
    position; rows without one count for nothing."""
    chosen = torch.zeros_like(weights)
    for row, after in lasts.items():
        chosen[row, : after + 1] = weights[row, : after + 1]
    (gradient,) = torch.autograd.grad(logits, embedded, chosen, retain_graph=True)
    return gradient.float().cpu()


def _share(gradient: Tensor, after: int, scale: float) -> float:
    """The largest gradient after a position, relative to `scale`, from [length, dim].

    The sum over later tokens, divided by the root of their number, counts as well: the many small and equal
    gradients of a mean add up in it, rounding does not.
    """
    later = gradient[after + 1 :]
    together = later.sum(dim=0).norm() / max(1, len(later)) ** 0.5
    share = torch.cat([later.norm(dim=-1), together[None]])
    return largest(share) / max(scale, torch.finfo(torch.float32).tiny)
