"""When a training is clearly behind: rungs at which its loss is held against the curves of finished designs.

As in ASHA (Li et al., arXiv 1810.05934) a rung keeps the better share of those that reached it. Two things differ: a
design must also be behind the reference baseline, and by more than the spread of the baselines' seeds, because a run
is noisy; and it is compared with the designs of its pool generation and before, never with those beside it, so that
the same seed stops the same designs however busy the machine is.

A curve is the training loss of each step, in nats per token, from step 1 on; that of a stopped design ends early.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from asiarch_hpc.config import EarlyStoppingConfig

Curve = Sequence[float]


def rung_steps(steps: int, config: EarlyStoppingConfig) -> list[int]:
    """Steps after which designs are compared, ascending, each with a whole window before it and none at the end."""
    found = {round(share * steps) for share in config.rungs}
    return sorted(step for step in found if window_steps(steps, config) <= step < steps)


def window_steps(steps: int, config: EarlyStoppingConfig) -> int:
    """Steps whose mean loss is compared."""
    return max(1, round(config.window * steps))


def smoothed(curve: Curve, step: int, window: int) -> float | None:
    """Mean loss of the `window` steps up to `step`; None where the curve ends before, or a value is not finite."""
    if len(curve) < step:
        return None
    value = statistics.fmean(curve[step - window : step])
    return value if math.isfinite(value) else None


def loss_limits(
    curves: Sequence[Curve], baselines: Sequence[Sequence[Curve]], *, steps: int, config: EarlyStoppingConfig
) -> dict[int, float]:
    """The smoothed loss that a training must be below at each rung; a rung that cannot be judged is left out.

    Args:
        curves: of earlier designs, stopped ones included.
        baselines: the curves of each baseline's seeds, those of the reference first.
        steps: of a whole training.
    """
    window = window_steps(steps, config)
    limits = {}
    for step in rung_steps(steps, config):
        losses = _present([smoothed(curve, step, window) for curve in curves])
        seeds = [_present([smoothed(curve, step, window) for curve in baseline]) for baseline in baselines]
        if not seeds or not seeds[0]:
            continue
        limit = loss_limit(losses, statistics.fmean(seeds[0]), pooled_sd(seeds), config)
        if limit is not None:
            limits[step] = limit
    return limits


def loss_limit(losses: Sequence[float], reference: float, sd: float, config: EarlyStoppingConfig) -> float | None:
    """The limit at one rung; None while too few designs have reached it, or the noise is not known.

    Args:
        losses: of the designs that reached it.
        reference: the reference baseline's.
        sd: standard deviation of one training over seeds.
    """
    if len(losses) < config.curves or not math.isfinite(sd):
        return None
    ordered = sorted(losses)
    last_kept = ordered[math.ceil(config.keep * len(ordered)) - 1]
    return max(last_kept, reference) + config.margin * sd


def pooled_sd(groups: Sequence[Sequence[float]]) -> float:
    """Standard deviation within groups, in all degrees of freedom that they have; NaN without any."""
    freedom = sum(len(group) - 1 for group in groups if group)
    if freedom < 1:
        return math.nan
    return math.sqrt(sum(statistics.variance(group) * (len(group) - 1) for group in groups if len(group) > 1) / freedom)


def _present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
