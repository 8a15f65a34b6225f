"""How the learning rate goes through a training."""

from __future__ import annotations

import math


def learning_rate(
    step: int,
    *,
    steps: int,
    peak: float,
    warmup_steps: int,
    decay_fraction: float,
    schedule: str = "wsd",
    min_ratio: float = 0.0,
) -> float:
    """The rate of a step counted from 0: a linear rise over `warmup_steps` steps to `peak`, then the schedule's fall.

    `wsd` (warm-up, stable, decay) stays at the peak and falls linearly in the last `decay_fraction` of the steps,
    `cosine` falls along half a cosine from the warm-up's end on; both towards `min_ratio` of the peak, which they
    would reach at step `steps`.
    """
    rising = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    if schedule == "cosine":
        falling = 0.5 * (1.0 + math.cos(math.pi * max(0, step - warmup_steps) / max(1, steps - warmup_steps)))
    else:
        decay_steps = round(decay_fraction * steps)
        falling = (steps - step) / decay_steps if step > steps - decay_steps else 1.0
    return peak * min(rising, min_ratio + (1.0 - min_ratio) * falling)
