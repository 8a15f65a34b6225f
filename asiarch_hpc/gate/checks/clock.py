"""Wall time and peak memory of training steps, of a design and its reference in turn.

Both are clocked in the same call on the same machine, step by step in turn, and the least of several times counts:
what disturbs a machine only ever adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from asiarch_hpc.gate.checks.growth import Growth, fit, halved
from asiarch_hpc.gate.checks.passes import backward
from asiarch_hpc.gate.checks.subject import Precision, Specimen

_FRACTIONS = (8, 4, 2, 1)  # of the scale's length; twice that length is the longest
_SHORTEST = 16  # scale length from which these are different
_LEAST = 1e-9  # seconds
_WARMING = 3  # steps: the first pays for what is made once, the least of the others says what is affordable


@dataclass
class Clocked:
    """Least seconds, and peak bytes on a GPU, of a training step, by length."""

    seconds: dict[int, float] = field(default_factory=dict)
    bytes: dict[int, int] = field(default_factory=dict)

    @property
    def growth(self) -> Growth:
        lengths = sorted(self.seconds)
        return fit(lengths, [max(self.seconds[length], _LEAST) for length in lengths])


class Clock:
    """Clocks training steps of a specimen and, where there is one, of its reference.

    Args:
        precision: of the steps.
        now: seconds, as `time.perf_counter` gives them.
    """

    def __init__(
        self,
        specimen: Specimen,
        reference: Specimen | None,
        *,
        precision: Precision,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.specimen, self.reference = specimen, reference
        self.design, self.baseline = Clocked(), Clocked()
        self._now, self._precision = now, precision
        self._models: list[tuple[Specimen, nn.Module, Clocked]] = []
        scale = max(_SHORTEST, specimen.subject.length)
        self.rows = max(1, min(len(specimen.subject.text), specimen.config.clock_tokens // (2 * scale)))
        self.lengths = sorted([scale // part for part in _FRACTIONS] + [2 * scale])

    def run(self) -> bool:
        """All repeats, or two and as many more as the time allows; False where one fails, which is recorded."""
        vocab, config = self.specimen.subject.vocab, self.specimen.config
        self._models = [(self.specimen, self.specimen.build(vocab), self.design)]
        if self.reference is not None:
            self._models.append((self.reference, self.reference.build(vocab), self.baseline))
        for _ in range(_WARMING):
            if self._step(*self._models[0], self.lengths[0]) is None:
                return False
        per_token = self.design.seconds.pop(self.lengths[0]) / self.lengths[0]
        self.lengths = halved(self.lengths, (0.0, per_token), config.clock_seconds)
        started = self._now()
        for number in range(max(2, config.clock_repeats)):
            if number >= 2 and not self._now() - started < config.clock_seconds:
                break
            if not self.round():
                return False
        return True

    def round(self) -> bool:
        """One more step of each at every length."""
        for length in self.lengths:
            for specimen, model, clocked in self._models:
                if self._step(specimen, model, clocked, length) is None:
                    return False
        return True

    def relative(self) -> tuple[float, float]:
        """Seconds and bytes beside the reference's at the two longest lengths, the larger of each."""
        chosen = self.lengths[-2:]
        seconds = max(self.design.seconds[n] / max(self.baseline.seconds[n], _LEAST) for n in chosen)
        return seconds, max(self.design.bytes[n] / max(self.baseline.bytes[n], 1) for n in chosen)

    def _step(self, specimen: Specimen, model: nn.Module, clocked: Clocked, length: int) -> float | None:
        cuda = specimen.device == "cuda"
        rows = specimen.ids(self.rows, length + 1, specimen.generator(length))
        before = 0
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = self._now()
        case = f"batch {self.rows}, length {length}"
        case += "" if self._precision == "fp32" else f", {self._precision}"
        if not backward(specimen, model, rows, case, self._precision):
            return None
        if cuda:
            torch.cuda.synchronize()
        seconds = self._now() - started
        clocked.seconds[length] = min(seconds, clocked.seconds.get(length, seconds))
        clocked.bytes[length] = torch.cuda.max_memory_allocated() - before if cuda else 0
        model.zero_grad(set_to_none=True)
        return seconds
