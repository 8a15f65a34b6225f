"""Whether a model's outputs depend on the content of later tokens.

At one length every position t is probed: all tokens after t are replaced by others, and the outputs up to t must
stay as they were, in training and in evaluation mode. At a length beyond the second chunk of every size that the
design's text names, t lies around chunk borders. The rows of a batch are probed at different t; what looks like a
leak is confirmed by probing all rows at that t, so that a mixing of rows is not taken for one. Every forward pass
runs on its own equal model and from the same random state, so that counters, buffers and dropout are equal in all of
them. The tolerance is relative to the outputs' scale: a transform over the whole length (an FFT convolution) may
round differently.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asiarch_hpc.gate.checks.subject import (
    MODES,
    Mode,
    Specimen,
    Step,
    all_finite,
    attempt,
    change_per_position,
    describe,
    largest,
    reject,
)
from asiarch_hpc.gate.sandbox.family import is_out_of_memory
from asiarch_hpc.records import Finding

_FIRST_BORDER = 16  # the smallest chunk in use


@dataclass(frozen=True, slots=True)
class _Leak:
    mode: Mode
    length: int
    after: int  # the last position whose token was kept
    position: int  # the first whose output changed
    change: float  # largest, relative to the outputs' scale
    seed: int  # of the passes' random state


def examine_causality(specimen: Specimen) -> Iterator[Step]:
    """At most one finding of each code: causality.leak, and causality.random where equal inputs give unequal
    outputs, so that nothing can be said."""
    config = specimen.config
    dense = list(range(config.causality_length - 1))
    plan = [(config.causality_length, dense)]
    if specimen.longest > config.causality_length:
        rng = random.Random(specimen.subject.seed)
        plan.append(
            (specimen.longest, probe_positions(specimen.longest, specimen.subject.chunks, config.border_positions, rng))
        )
    leaks: list[_Leak] = []
    noise: dict[Mode, float] = {}
    probed = dict(plan)
    for mode in MODES:
        for length, positions in plan:
            yield f"causality in {mode} mode at length {length}"
            case = f"length {length}, {mode} mode"
            try:
                found, random_change = _probe(specimen, mode, length, positions)
                noise[mode] = max(noise.get(mode, 0.0), random_change)
                leaks += found
            except BaseException as error:  # whatever the design raises
                if is_out_of_memory(error):
                    raise
                specimen.failures.add("forward.failed", case, describe(error))
    unequal = [mode for mode, change in noise.items() if not change <= specimen.tolerance]
    if unequal:
        yield _random_finding(unequal, max(noise[mode] for mode in unequal), specimen.tolerance)
    leaks = [leak for leak in leaks if leak.mode not in unequal]
    if leaks:
        yield _leak_finding(leaks, probed, specimen.tolerance)


def probe_positions(length: int, chunks: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """At most about `count` last-kept positions: those just before and just after borders of the design's own chunks
    and of powers of two, largest borders first, and random ones; each is below length - 1."""
    borders = [multiple * chunk for chunk in chunks for multiple in (1, 2, 3)]
    power = _FIRST_BORDER
    while power < length:
        borders.append(power)
        power *= 2
    wanted = [position for border in sorted(set(borders), reverse=True) for position in (border - 1, border)]
    chosen = [position for position in dict.fromkeys(wanted) if 0 <= position < length - 1][:count]
    while len(chosen) < min(count, length - 1):
        position = rng.randrange(length - 1)
        if position not in chosen:
            chosen.append(position)
    return sorted(chosen)


def _probe(specimen: Specimen, mode: Mode, length: int, positions: Sequence[int]) -> tuple[list[_Leak], float]:
    """Confirmed leaks, and the largest change between two equal passes."""
    rows, generator = specimen.config.probe_rows, specimen.generator(length)
    random_change = 0.0
    suspects: list[_Leak] = []
    for start in range(0, len(positions), rows):
        group = positions[start : start + rows]
        ids = specimen.ids(len(group), length, generator)
        seed = start // rows  # rare random branches differ from group to group
        base = specimen.logits(specimen.fresh(), ids, mode, seed=seed)
        if not all_finite(base):
            specimen.failures.add("forward.nonfinite", f"length {length}, {mode} mode", "outputs are not finite")
            return [], 0.0
        scale = float(base.std())
        if start == 0:
            again = specimen.logits(specimen.fresh(), ids, mode, seed=seed)
            random_change = largest(change_per_position(base, again, scale))
        changed = replace_after(ids, group, specimen.vocab, generator)
        other = specimen.logits(specimen.fresh(), changed, mode, seed=seed)
        change = change_per_position(base, other, scale)
        suspects += [
            _leak(specimen, mode, length, after, change[row : row + 1], seed) for row, after in enumerate(group)
        ]
    suspects = sorted((leak for leak in suspects if leak.position >= 0), key=lambda leak: -leak.change)
    confirmed = [_confirm(specimen, leak, generator) for leak in suspects[: specimen.config.confirmations]]
    return [leak for leak in confirmed if leak.position >= 0], random_change


def _confirm(specimen: Specimen, leak: _Leak, generator: torch.Generator) -> _Leak:
    """The same probe with all rows changed at the same position; `position` is -1 where nothing changed.

    In fp64 where the design works in it: rounding that it amplifies fades there, and a leak stays.
    """
    ids = specimen.ids(2, leak.length, generator)
    changed = replace_after(ids, [leak.after] * 2, specimen.vocab, generator)

    def probe(dtype: torch.dtype) -> Tensor:
        """[2, length] changes."""
        base, other = (
            specimen.logits(specimen.fresh().to(dtype), rows, leak.mode, seed=leak.seed) for rows in (ids, changed)
        )
        return change_per_position(base, other, float(base.std()))

    change = None
    if specimen.precision == "fp32":
        change, _ = attempt(lambda: probe(torch.float64))
    if change is None or not all_finite(change):
        change = probe(torch.float32)
    return _leak(specimen, leak.mode, leak.length, leak.after, change, leak.seed)


def replace_after(ids: Tensor, positions: Sequence[int], vocab: int, generator: torch.Generator) -> Tensor:
    """A copy of [batch, length] ids in which each row's tokens after its position are other ones."""
    changed = ids.clone()
    for row, after in zip(changed, positions, strict=True):
        later = row[after + 1 :]
        later += torch.randint(1, vocab, later.shape, generator=generator)
    return changed % vocab


def _leak(specimen: Specimen, mode: Mode, length: int, after: int, change: Tensor, seed: int) -> _Leak:
    """From [rows, length] changes; what is not a number counts as changed."""
    before = change[:, : after + 1]
    beyond = (~(before <= specimen.tolerance)).any(dim=0)
    position = int(beyond.nonzero()[0]) if bool(beyond.any()) else -1
    return _Leak(mode, length, after, position, largest(before), seed)


def _leak_finding(leaks: list[_Leak], probed: dict[int, list[int]], tolerance: float) -> Finding:
    worst = max(leaks, key=lambda leak: leak.change)
    lengths = sorted({leak.length for leak in leaks})
    afters = sorted({leak.after for leak in leaks})
    modes = [mode for mode in MODES if any(leak.mode == mode for leak in leaks)]
    hint = (
        "Look for a mean, norm, softmax, sort or top-k over the length without a causal mask, right-sided padding of "
        "a convolution, roll or flip, an FFT without padding to twice the length."
    )
    if len(modes) == 1:
        hint += f" Only {modes[0]} mode leaks."
    if lengths != sorted(probed):
        hint += f" Only length {lengths[0]} leaks, not {[n for n in sorted(probed) if n not in lengths]}."
    where = ", ".join(map(str, afters[:8]))
    return reject(
        "causality.leak",
        f"outputs up to t change when only tokens after t change, in {' and '.join(modes)} mode at length "
        f"{' and '.join(map(str, lengths))}, {'at least ' if len(afters) >= 8 else ''}for t = {where}; with t = "
        f"{worst.after} the first changed output is at {worst.position}",
        hint,
        measured=worst.change,
        limit=tolerance,
    )


def _random_finding(modes: list[Mode], change: float, tolerance: float) -> Finding:
    return reject(
        "causality.random",
        f"equal inputs, weights and random seed give unequal outputs in {' and '.join(modes)} mode, "
        "so that causality cannot be examined",
        "Draw random numbers from torch's global generator only, and keep no state outside the module.",
        measured=change,
        limit=tolerance,
    )
