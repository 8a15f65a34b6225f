"""Whether the outputs of a prefix are the same when it stands alone and when more tokens follow.

They differ for two reasons: what follows leaks, which is examined elsewhere, or the total length matters. To tell
them apart, what follows is also replaced by other tokens at the same total length: a difference that this does not
come near to is one of length. Sizes of transforms, padding of chunks and shapes of products change rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from asiarch_hpc.gate.checks.subject import (
    MODES,
    Mode,
    Specimen,
    Step,
    change_per_position,
    largest,
    reject,
    shown,
)
from asiarch_hpc.records import Finding

_EXPLAINED = 0.1  # of a difference by length, from which on later content may be its cause
_ROWS = 2


@dataclass(frozen=True, slots=True)
class _Difference:
    mode: Mode
    length: int  # of the prefix
    position: int  # the first whose output differs
    change: float  # largest, relative to the outputs' scale


def examine_prefixes(specimen: Specimen) -> Iterator[Step]:
    """At most one finding, prefix.length. Modes in which random numbers are drawn are passed over: other lengths
    draw others."""
    total = specimen.longest
    found: list[_Difference] = []
    for mode in MODES:
        yield f"prefixes of {total} tokens in {mode} mode"
        found += _compare(specimen, mode, total)
    if found:
        yield _finding(found, total, specimen.tolerance)


def prefix_lengths(specimen: Specimen) -> list[int]:
    """Lengths below the longest: the configured ones, and those just before, at and after borders of the design's
    own chunks."""
    chunks = specimen.subject.chunks[-specimen.config.border_positions // 3 :]
    borders = [chunk + step for chunk in chunks for step in (-1, 0, 1)]
    return sorted({n for n in (*specimen.config.prefix_lengths, *borders) if 1 <= n < specimen.longest})


def _compare(specimen: Specimen, mode: Mode, total: int) -> list[_Difference]:
    generator = specimen.generator(total)
    ids = specimen.ids(_ROWS, total, generator)
    base = specimen.answer(specimen.fresh(), ids, mode)
    reseeded = specimen.answer(specimen.fresh(), ids, mode, seed=1)
    if base is None or reseeded is None:
        return []
    scale = float(base.std())
    if not largest(change_per_position(base, reseeded, scale)) <= specimen.tolerance:
        return []
    found: list[_Difference] = []
    for length in prefix_lengths(specimen):
        if len(found) == specimen.config.confirmations:
            break
        alone = specimen.answer(specimen.fresh(), ids[:, :length], mode)
        if alone is None:
            continue
        change = change_per_position(base[:, :length], alone, scale)
        if largest(change) <= specimen.tolerance:
            continue
        by_content = 0.0
        for other in _other_endings(ids, length, specimen.vocab, generator):
            answer = specimen.answer(specimen.fresh(), other, mode)
            if answer is not None:
                by_content = max(by_content, largest(change_per_position(base, answer, scale)[:, :length]))
        if not by_content > _EXPLAINED * largest(change):
            position = int((~(change <= specimen.tolerance)).any(dim=0).nonzero()[0])
            found.append(_Difference(mode, length, position, largest(change)))
    return found


def _other_endings(ids: Tensor, length: int, vocab: int, generator: torch.Generator) -> list[Tensor]:
    """Copies of [batch, total] ids with other tokens from position `length` on: random ones; one token alone; and
    the prefix again and again, so that statistics over the sequence are those of the prefix."""
    ending = ids[:, length:]
    shifted = (ending + torch.randint(1, vocab, ending.shape, generator=generator)) % vocab
    again = ids[:, torch.arange(length, ids.shape[1]) % length]
    return [torch.cat([ids[:, :length], new], 1) for new in (shifted, shifted[:, :1].expand_as(ending), again)]


def _finding(found: list[_Difference], total: int, tolerance: float) -> Finding:
    worst = max(found, key=lambda item: item.change)
    modes = [mode for mode in MODES if any(item.mode == mode for item in found)]
    lengths = [str(length) for length in sorted({item.length for item in found})]
    return reject(
        "prefix.length",
        f"a prefix of {shown(lengths)} tokens gives other outputs alone than within {total} tokens, whatever those "
        f"after it are, in {' and '.join(modes)} mode; alone at {worst.length}, the first difference is at position "
        f"{worst.position}",
        "Let nothing depend on the number of tokens: no division by the length, no positions counted from the end or "
        "scaled by it, no switch at a length, no borders of chunks placed by it.",
        measured=worst.change,
        limit=tolerance,
    )
