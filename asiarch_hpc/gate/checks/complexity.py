"""What a training step costs: its arithmetic, its growth with the length, its time and memory beside the reference's.

A training step is a forward and a backward pass: that is what a search pays for, and where designs that look cheap
keep their activations. Verdicts rest on counted cost, which is the same on every machine under every load; the clock
is shown beside it and has a say only where the configuration lets it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

from asiarch_hpc.gate.checks.clock import Clock
from asiarch_hpc.gate.checks.growth import Growth, fit, halved
from asiarch_hpc.gate.checks.measure import BackwardError, Meter, StepCost, forward_cost
from asiarch_hpc.gate.checks.subject import Precision, Specimen, Step, attempt, describe, finding, reject
from asiarch_hpc.records import Finding

_LINEAR = 1.001  # a local slope up to this is that of a cost in proportion to the length, or below
_LONGEST_FOR_REAL = 2048  # tokens of a row that is counted on real values
_CLOCK_ROUNDS = 4  # more of them before the clock refuses a design
_FASTER = "Replace loops over tokens or small chunks by operations on whole chunks or by a scan; use larger chunks."
_LIGHTER = (
    "Look for work that repeats for every pair of positions or every state: share it between heads, make states "
    "smaller, or compute it in chunks."
)
_SMALLER = (
    "Look for tensors such as [batch, length, dim, state] that the backward pass keeps: compute in chunks that pass "
    "on a state."
)
_LINEAR_HINT = (
    "This scale takes growth up to about n log n: replace products of all positions with all by chunks with a "
    "carried state, a window, or an FFT of twice the length."
)


def examine_complexity(specimen: Specimen) -> Iterator[Step]:
    """Codes: size.flops, complexity.{fit,quadratic,slow,memory}; measures the counted and clocked fields."""
    subject, config = specimen.subject, specimen.config
    counted = _Counted(specimen, subject.vocab)
    row = counted.step(1, subject.length)
    if row is not None:
        forward = forward_cost(row, subject.length, config)
        yield {
            "flops_per_token": forward.flops_per_token,
            "launches": forward.launches,
            "modelled_seconds_per_token": forward.modelled_seconds_per_token,
        }
    reference = _reference(specimen)
    yield "counted cost beside the baseline's"
    if reference is None:
        yield {"relative_seconds": 0.0, "relative_bytes": 0.0}
    else:
        beside = _Counted(reference, subject.vocab)
        yield from _examine_flops(specimen, counted, beside)
        yield from _examine_counted(specimen, counted, beside)
    yield "growth of the counted cost"
    yield from _examine_growth(specimen, counted)
    if not counted.failed:
        yield "training steps by the clock"
        yield from _examine_clock(specimen, reference)


class _Counted:
    """Counted steps of a specimen, each once; what fails is recorded in its failures."""

    def __init__(self, specimen: Specimen, vocab: int) -> None:
        self.specimen = specimen
        self.failed = False
        # The meta device knows no autocast: a design that works in bf16 alone runs for real.
        arithmetic = functools.partial(specimen.autocast, "bf16") if specimen.precision == "bf16" else None
        self._meter, failure = attempt(lambda: Meter(specimen.build(vocab), vocab, specimen.config, arithmetic))
        self._steps: dict[tuple[int, int], StepCost] = {}
        if self._meter is None:
            self._fail("construct.failed", "second construction", failure)

    @property
    def runs_for_real(self) -> bool:
        return self._meter is not None and self._meter.values_needed

    def step(self, batch: int, length: int, *, required: bool = True) -> StepCost | None:
        """None where it fails, which is a fault if it was `required`, and once a fault was found."""
        key, meter = (batch, length), self._meter
        if self.failed or meter is None:
            return None
        if key not in self._steps:
            backward = ""

            def count() -> StepCost | None:
                nonlocal backward
                try:
                    return meter.step(batch, length)
                except BackwardError as error:
                    backward = describe(error.__cause__ or error)
                    return None

            found, failure = attempt(count)
            if found is None and required:
                code = "backward.failed" if backward else "forward.failed"
                self._fail(code, f"batch {batch}, length {length}", backward or failure)
            if found is None:
                return None
            self._steps[key] = found
        return self._steps[key]

    def _fail(self, code: str, case: str, failure: str) -> None:
        self.failed = True
        self.specimen.failures.add(code, case, failure)


def _reference(specimen: Specimen) -> Specimen | None:
    """The baseline at its own size, or None where the design is it."""
    build = specimen.subject.build_reference
    if build is None:
        return None
    subject = dataclasses.replace(specimen.subject, build=lambda dim, depth, vocab: build(vocab))
    return Specimen(subject, specimen.dim, specimen.depth, specimen.device)


def _examine_flops(specimen: Specimen, counted: _Counted, beside: _Counted) -> Iterator[Finding]:
    config, length = specimen.config, specimen.subject.length
    mine, theirs = counted.step(1, length), beside.step(1, length)
    if mine is None or theirs is None:
        return
    flops = forward_cost(mine, length, config).flops_per_token
    factor, limit = flops / forward_cost(theirs, length, config).flops_per_token, config.flops_tolerance
    if not 1 / limit <= factor <= limit:
        yield finding(
            "size.flops",
            "warn",
            f"{flops:,.0f} FLOPs a token, {factor:.2f} times the baseline's",
            "Results at equal parameters but unequal arithmetic compare less fairly.",
            measured=factor,
            limit=limit if factor > 1 else 1 / limit,
        )


def _examine_growth(specimen: Specimen, counted: _Counted) -> Iterator[Step]:
    config, rows, length = specimen.config, len(specimen.subject.text), specimen.subject.length
    short, long = counted.step(rows, length), counted.step(rows, 2 * length)
    if short is None or long is None:
        return
    launches = _line((length, short.whole.launches), (2 * length, long.whole.launches))
    fitted = functools.partial(halved, config.exponent_lengths, launches, config.count_launches)
    lengths = fitted(longest=2 * length if counted.runs_for_real else None)
    steps = [step for step in (counted.step(1, n, required=False) for n in lengths) if step is not None]
    if len(steps) < len(lengths):  # some designs have a longest length, which must be twice the scale's at least
        lengths = fitted(longest=2 * length)
        steps = [step for step in (counted.step(1, n) for n in lengths) if step is not None]
    if len(steps) < len(lengths):
        return
    time = fit(lengths, [max(step.whole.busy_s, 1e-12) for step in steps])
    memory = fit(lengths, [max(step.peak_bytes, 1.0) for step in steps])
    yield {
        "time_exponent": time.exponent,
        "time_exponent_error": time.error,
        "memory_exponent": memory.exponent,
        "memory_exponent_error": memory.error,
    }
    yield finding(
        "complexity.fit",
        "property",
        f"over lengths {lengths[0]} to {lengths[-1]} the counted time of a training step grows as {time.text()}, "
        f"its peak memory as {memory.text()}",
        "",
        measured=time.exponent,
    )
    if not specimen.subject.attention:
        yield from _examine_quadratic(specimen, time, launches, runs_for_real=counted.runs_for_real)


def _examine_quadratic(
    specimen: Specimen, time: Growth, launches: tuple[float, float], *, runs_for_real: bool
) -> Iterator[Finding]:
    """Looks at lengths, and with a vocabulary, at which terms in proportion to the length hide no quadratic one."""
    config, slope, lengths = specimen.config, time.tail, time.lengths[-2:]
    if slope > _LINEAR:
        longest = _LONGEST_FOR_REAL if runs_for_real else config.growth_length
        far = halved([longest // 4, longest // 2, longest], launches, config.count_launches)[-2:]
        if far[-1] > lengths[-1]:
            counted = _Counted(specimen, specimen.vocab)
            first, second = (counted.step(1, length, required=False) for length in far)
            if first is not None and second is not None:
                lengths = (far[0], far[1])
                slope = math.log2(second.whole.busy_s / first.whole.busy_s)
    if not slope <= config.growth_limit:
        yield reject(
            "complexity.quadratic",
            f"from length {lengths[0]:,} to {lengths[1]:,} the counted time of a training step grows as "
            f"length^{slope:.2f}",
            _LINEAR_HINT,
            measured=slope,
            limit=config.growth_limit,
        )


def _examine_counted(specimen: Specimen, counted: _Counted, beside: _Counted) -> Iterator[Step]:
    config, rows, length = specimen.config, len(specimen.subject.text), specimen.subject.length
    pairs = [(n, counted.step(rows, n), beside.step(rows, n)) for n in (length, 2 * length)]
    found = [(n, mine, theirs) for n, mine, theirs in pairs if mine is not None and theirs is not None]
    if len(found) < len(pairs):
        return
    slower = [mine.seconds(config) / theirs.seconds(config) for _, mine, theirs in found]
    larger = [mine.peak_bytes / max(theirs.peak_bytes, 1.0) for _, mine, theirs in found]
    yield {"relative_seconds": max(slower), "relative_bytes": max(larger)}
    n, mine, theirs = found[slower.index(max(slower))]
    if not max(slower) <= config.slow_multiple:
        launches, busy = mine.whole.launches / theirs.whole.launches, mine.whole.busy_s / theirs.whole.busy_s
        yield reject(
            "complexity.slow",
            f"by counted cost a training step of {rows} x {n} tokens takes {max(slower):.1f} times the baseline's "
            f"time: {mine.whole.launches:,} tensor operations ({launches:.1f} times as many), which compute and move "
            f"{busy:.1f} times as long",
            _FASTER if launches > busy else _LIGHTER,
            measured=max(slower),
            limit=config.slow_multiple,
        )
    n, mine, theirs = found[larger.index(max(larger))]
    if not max(larger) <= config.memory_multiple:
        yield reject(
            "complexity.memory",
            f"by counted cost a training step of {rows} x {n} tokens holds {_megabytes(mine.peak_bytes)}, "
            f"{max(larger):.1f} times the baseline's {_megabytes(theirs.peak_bytes)}",
            _SMALLER,
            measured=max(larger),
            limit=config.memory_multiple,
        )


def _examine_clock(specimen: Specimen, reference: Specimen | None) -> Iterator[Step]:
    config = specimen.config
    precision: Precision = "bf16" if specimen.precision == "bf16" else specimen.subject.precision
    clock = Clock(specimen, reference, precision=precision)
    if not clock.run():
        return
    slower = larger = 0.0
    if reference is not None:
        slower, larger = clock.relative()
        for _ in range(_CLOCK_ROUNDS if config.clock_decides else 0):
            if slower <= config.slow_multiple or not clock.round():
                break
            slower, larger = clock.relative()
    growth, length = clock.design.growth, clock.lengths[-2]
    yield {
        "clock_tokens": clock.rows * length,
        "clock_seconds": clock.design.seconds[length],
        "clock_bytes": clock.design.bytes[length],
        "clock_exponent": growth.exponent,
        "clock_exponent_error": growth.error,
        "clock_relative_seconds": slower,
        "clock_relative_bytes": larger,
    }
    if not config.clock_decides:
        return
    where = f"by the clock on this {specimen.device} a training step of {clock.rows} x {length} tokens"
    if not slower <= config.slow_multiple:
        yield reject(
            "complexity.slow",
            f"{where} takes {slower:.1f} times the baseline's time",
            _FASTER,
            measured=slower,
            limit=config.slow_multiple,
        )
    if not larger <= config.memory_multiple:
        yield reject(
            "complexity.memory",
            f"{where} holds {larger:.1f} times the baseline's memory",
            _SMALLER,
            measured=larger,
            limit=config.memory_multiple,
        )


def _line(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """(value at 0, slope) of the line through two points; never falling."""
    slope = max(0.0, (second[1] - first[1]) / (second[0] - first[0]))
    return first[1] - slope * first[0], slope


def _megabytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MB"
