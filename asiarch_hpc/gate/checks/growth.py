"""How a cost grows with the length: the exponent of a power law and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % points of Student's t distribution for 1, 2, 3 ... degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)


@dataclass(frozen=True, slots=True)
class Growth:
    """Least squares of log cost over log length: `exponent` within `error` (half the 95 % interval); `tail` is the
    slope between the two longest lengths alone, where fixed costs weigh least."""

    lengths: tuple[int, ...]
    exponent: float
    error: float
    tail: float

    def text(self) -> str:
        return (
            f"length^{self.exponent:.2f} (95 %: {self.exponent - self.error:.2f} to {self.exponent + self.error:.2f})"
        )


def fit(lengths: Sequence[int], costs: Sequence[float]) -> Growth:
    """Fits at least three positive costs at rising lengths."""
    assert len(lengths) == len(costs) >= 3, f"{len(lengths)} lengths, {len(costs)} costs"
    x, y = [math.log(length) for length in lengths], [math.log(cost) for cost in costs]
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    spread = math.fsum((a - mean_x) ** 2 for a in x)
    slope = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    left = math.fsum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    freedom = len(x) - 2
    error = _STUDENT[min(freedom, len(_STUDENT)) - 1] * math.sqrt(left / freedom / spread)
    return Growth(tuple(lengths), slope, error, (y[-1] - y[-2]) / (x[-1] - x[-2]))


def halved(
    lengths: Sequence[int], cost: tuple[float, float], budget: float, *, longest: int | None = None
) -> list[int]:
    """The lengths, halved together until their costs, `cost[0] + cost[1] * length` each, sum up to `budget` at most
    and none exceeds `longest`; they stay different and above 0."""
    found = sorted(lengths)

    def too_much() -> bool:
        total = math.fsum(cost[0] + cost[1] * length for length in found)
        return total > budget or (longest is not None and found[-1] > longest)

    while too_much():
        shorter = sorted({length // 2 for length in found})
        if len(shorter) < len(found) or shorter[0] < 1:
            break
        found = shorter
    return found
