"""Whether a design that asks which documents a row's tokens are of uses the answer as it should.

Documents that are packed into rows are compared with each alone, as evaluation has them: without `documents`. And at
positions t all that comes later is replaced, tokens and documents: outputs up to t must stay as they were, in training
and in evaluation mode. Where later documents begin tells how long this one goes on, which nobody may know. A leak is
confirmed by changing the later documents alone, and the later tokens alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from asiarch_hpc.gate.checks.causality import probe_positions, replace_after
from asiarch_hpc.gate.checks.subject import (
    MODES,
    Mode,
    Specimen,
    Step,
    all_finite,
    attempt,
    change_per_position,
    finding,
    largest,
    reject,
)
from asiarch_hpc.records import Finding

# Tokens of each document of each row. Two rows are one document each: their numbers are equal where the rows meet.
_PACKED = ([17, 64, 17, 1], [99], [99], [1, 17, 64, 17])
_BY_NUMBERS, _BY_TOKENS = "the documents of later tokens", "later tokens"
_APART_HINT = (
    "Start convolutions, shifts, states, positions and attention anew where `documents` changes: the operations of "
    "kernels take `documents`, and every unit of a tree has them in Z."
)


@dataclass(frozen=True, slots=True)
class _Leak:
    mode: Mode
    by: str  # what of later tokens it comes from
    after: int  # the last position that was kept
    change: float  # largest up to there, relative to the outputs' scale


def examine_documents(specimen: Specimen) -> Iterator[Step]:
    """At most one finding of each code: isolation.documents, isolation.batch, causality.documents."""
    code, claim = "isolation.documents", "documents"
    if not specimen.asks_for_documents:
        text = "the design does not ask for documents: in a row, what it remembers goes on from one to the next"
        yield specimen.ability(code, claim, text, "", otherwise="property")
        return
    yield "documents of a row"
    for mode in ("train", "eval"):  # documents are given in training; random numbers hide there what evaluation shows
        packed = _Packed(specimen, mode)
        if packed.whole is not None and (packed.change <= specimen.tolerance or not packed.draws()):
            yield packed.finding()
            break
    leaks: list[_Leak] = []
    for mode in MODES:
        yield f"causality with documents in {mode} mode"
        leaks += _probe(specimen, mode)
    if leaks:
        yield _leak_finding(leaks, specimen.tolerance)


class _Packed:
    """Rows of several documents in one mode.

    `whole`: their logits [rows, length, vocab], None after a failure, which is recorded. `change`: the largest by which
    a document's differ from those of it alone, relative to their scale.
    """

    def __init__(self, specimen: Specimen, mode: Mode) -> None:
        self._specimen, self._mode = specimen, mode
        numbers = [torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) for sizes in _PACKED]
        self._documents = torch.stack(numbers).int()
        rows, length = self._documents.shape
        self._ids = specimen.ids(rows, length, specimen.generator(length))
        self.whole = self._answer(self._ids, self._documents)
        self.change = 0.0 if self.whole is None else self._change_alone(self.whole)

    def draws(self) -> bool:
        """Whether random numbers are drawn: other ones in a pass of another shape."""
        other = self._answer(self._ids, self._documents, seed=1)
        return not self._change(self.whole, other) <= self._specimen.tolerance

    def finding(self) -> Finding:
        code, change, limit = "isolation.documents", self.change, self._specimen.tolerance
        if change <= limit:
            return finding(code, "property", "documents of a row stay apart", "", measured=change, limit=limit)
        mixing = self._mixing(given=True)
        if not mixing <= limit and self._mixing(given=False) <= limit:  # else it is reported elsewhere
            return reject(
                "isolation.batch",
                "given documents, a row's outputs depend on the other rows",
                "Documents are counted anew in each row: where rows are joined, begin one at each row.",
                measured=mixing,
                limit=limit,
            )
        text = "the design asks for documents, but one in a row of several gives other outputs than alone"
        return self._specimen.ability(
            code, "documents", text, _APART_HINT, otherwise="property", measured=change, limit=limit
        )

    def _change_alone(self, whole: Tensor) -> float:
        places: dict[int, list[tuple[int, slice]]] = {}  # by length
        for row, sizes in enumerate(_PACKED):
            for size, end in zip(sizes, accumulate(sizes), strict=True):
                places.setdefault(size, []).append((row, slice(end - size, end)))
        change, scale = 0.0, float(whole.std())
        for of_length in places.values():
            expected, ids = (torch.stack([tensor[place] for place in of_length]) for tensor in (whole, self._ids))
            alone = self._answer(ids, None)
            if alone is not None:
                change = max(change, largest(change_per_position(expected, alone, scale)))
        return change

    def _mixing(self, *, given: bool) -> float:
        """The largest change of half of the rows when the others are replaced, given documents or not."""
        base = self.whole if given else self._answer(self._ids, None)
        change, (rows, length) = 0.0, self._ids.shape
        generator = self._specimen.generator(length + 1)
        for kept in ([0, 1], [2, 3]):
            ids = self._specimen.ids(rows, length, generator)
            documents = self._specimen.documents(rows, length, generator)
            ids[kept], documents[kept] = self._ids[kept], self._documents[kept]
            answer = self._answer(ids, documents if given else None)
            change = max(change, self._change(base, answer, kept))
        return change

    def _answer(self, ids: Tensor, documents: Tensor | None, seed: int = 0) -> Tensor | None:
        return self._specimen.answer(self._specimen.fresh(), ids, self._mode, seed=seed, documents=documents)

    def _change(self, base: Tensor | None, other: Tensor | None, rows: Sequence[int] = range(len(_PACKED))) -> float:
        """The largest change of some rows; none after a failure."""
        if base is None or other is None:
            return 0.0
        return largest(change_per_position(base, other, float(base.std()))[list(rows)])


def _probe(specimen: Specimen, mode: Mode) -> list[_Leak]:
    """Confirmed leaks."""
    config, rng = specimen.config, random.Random(f"{specimen.subject.seed}/{mode}")
    length = config.causality_length
    positions = probe_positions(length, specimen.subject.chunks, config.document_rows // 2, rng)
    others = [after for after in range(length - 1) if after not in positions]
    positions = sorted(positions + rng.sample(others, config.document_rows - len(positions)))
    generator = specimen.generator(length + 1)
    ids = specimen.ids(len(positions), length, generator)
    documents, other = _two_endings(specimen, positions, length, generator)
    changed = replace_after(ids, positions, specimen.vocab, generator)
    base = specimen.answer(specimen.fresh(), ids, mode, documents=documents)
    answer = specimen.answer(specimen.fresh(), changed, mode, documents=other)
    if base is None or answer is None:
        return []
    change = change_per_position(base, answer, float(base.std()))
    suspects = [(largest(change[row, : after + 1]), after) for row, after in enumerate(positions)]
    worst = sorted((amount, after) for amount, after in suspects if not amount <= specimen.tolerance)
    return [leak for _, after in worst[-config.confirmations :] for leak in _confirm(specimen, mode, after, generator)]


def _two_endings(
    specimen: Specimen, positions: list[int], length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Documents [rows, length] int32 and others that are the same up to each row's position alone: with or without a
    border right behind it, with another number of documents, and some rows with padding at the end."""
    shape = (len(positions), length)
    after, odd = torch.tensor(positions)[:, None], torch.arange(len(positions))[:, None] % 2 == 1
    place = torch.arange(length)
    begins = torch.rand(shape, generator=generator) < 1 / specimen.config.document_length
    begins[:, 0] = False
    begins = torch.where(place == after + 1, ~odd, begins)
    many = (torch.rand(shape, generator=generator) < 0.5) | (place == after + 1)
    other = torch.where(place > after, many & odd, begins)
    documents, others = (border.cumsum(1, dtype=torch.int32) for border in (begins, other))
    padded = length - length // 8
    documents[(place >= padded) & (after < padded - 1) & (torch.arange(len(positions))[:, None] % 4 < 2)] = -1
    return documents, others


def _confirm(specimen: Specimen, mode: Mode, after: int, generator: torch.Generator) -> list[_Leak]:
    """The same probe at one position for each thing that may leak, row by row, so that a mixing of rows is not taken
    for a leak, and in fp64 where the design works in it. What leaks without documents as well is reported elsewhere,
    and so is a design that is not repeatable."""
    length, tolerance = specimen.config.causality_length, specimen.tolerance
    ids = specimen.ids(2, length, generator)
    documents, other = _two_endings(specimen, [after] * 2, length, generator)
    changed = replace_after(ids, [after] * 2, specimen.vocab, generator)

    def probe(dtype: torch.dtype) -> dict[str, float]:
        def answer(ids: Tensor, documents: Tensor | None) -> Tensor:
            numbers = [None] * len(ids) if documents is None else torch.split(documents, 1)
            rows = zip(torch.split(ids, 1), numbers, strict=True)
            return torch.cat([specimen.logits(specimen.fresh().to(dtype), row, mode, documents=n) for row, n in rows])

        base = answer(ids, documents)

        def change(other: Tensor, base: Tensor = base) -> float:
            return largest(change_per_position(base, other, float(base.std()))[:, : after + 1])

        known = change(answer(changed, None), answer(ids, None))
        found = {_BY_NUMBERS: change(answer(ids, other)), _BY_TOKENS: change(answer(changed, documents))}
        if not change(answer(ids, documents)) <= tolerance:
            found = {}
        return {by: amount for by, amount in found.items() if by == _BY_NUMBERS or known <= tolerance}

    found = None
    if specimen.precision == "fp32":
        found, _ = attempt(lambda: probe(torch.float64))
    if found is None or not all_finite(torch.tensor([*found.values(), 0.0])):
        found = probe(torch.float32)
    return [_Leak(mode, by, after, amount) for by, amount in found.items() if not amount <= tolerance]


def _leak_finding(leaks: list[_Leak], tolerance: float) -> Finding:
    worst = max(leaks, key=lambda leak: leak.change)
    modes = [mode for mode in MODES if any(leak.mode == mode for leak in leaks)]
    afters = sorted({leak.after for leak in leaks})
    hints = {
        _BY_NUMBERS: "A token may look at its own and earlier documents: the first one of a document sees the border, "
        "the last one before it does not. No counts, lengths or maxima of a whole row or of a whole document.",
        _BY_TOKENS: "Look for a mask that compares documents but not positions, and for sums over a whole document.",
    }
    ways = [by for by in hints if any(leak.by == by for leak in leaks)]
    return reject(
        "causality.documents",
        f"given documents, outputs up to t change when only {' or only '.join(ways)} change, in {' and '.join(modes)} "
        f"mode, for t = {', '.join(map(str, afters[:8]))}{' …' if len(afters) > 8 else ''}",
        " ".join(hints[by] for by in ways),
        measured=worst.change,
        limit=tolerance,
    )
