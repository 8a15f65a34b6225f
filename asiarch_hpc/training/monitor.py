"""Stops a training that cannot give a score: not finite, diverged, or too slow."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Literal

from asiarch_hpc.errors import TrainingError

Cause = Literal["non_finite_loss", "diverged", "too_slow", "design_error"]

_SPEED_WINDOW = 5


class TrainingStoppedError(TrainingError):
    """A training was ended because of its design; `cause` is what a failed experiment is counted under."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause: Cause = cause

    def __reduce__(self) -> tuple[type[TrainingStoppedError], tuple[str, str]]:
        # It travels between processes; the default would drop the cause.
        return type(self), (self.cause, str(self))


class Monitor:
    """Watches the steps of one training.

    Args:
        loss_limit: nats per token; a loss that is not below has diverged.
        step_seconds_limit: seconds; a median of five steps that is not below is too slow. The first step after
            a start is left out, as it compiles and allocates.
    """

    def __init__(self, *, loss_limit: float, step_seconds_limit: float) -> None:
        self._loss_limit = loss_limit
        self._step_seconds_limit = step_seconds_limit
        self._seconds: deque[float] = deque(maxlen=_SPEED_WINDOW)
        self._started = False

    def check(self, step: int, *, loss: float, gradient_norm: float, seconds: float) -> None:
        """Raises TrainingStoppedError if this step's numbers rule the training out."""
        if not math.isfinite(loss):
            raise TrainingStoppedError(
                "non_finite_loss",
                f"step {step}: the loss is {loss}, a finite number was expected; look for divisions, logarithms and "
                "exponentials without bounds in the design",
            )
        if not math.isfinite(gradient_norm):
            raise TrainingStoppedError(
                "non_finite_loss",
                f"step {step}: the gradient norm is {gradient_norm} at loss {loss:.4f}, a finite number was expected; "
                "look for square roots at zero and unbounded exponentials in the design",
            )
        if not loss < self._loss_limit:
            raise TrainingStoppedError(
                "diverged",
                f"step {step}: the loss is {loss:.2f} nats, below scale.loss_limit={self._loss_limit:g} was expected; "
                "normalise the design's outputs or bound its recurrence",
            )
        if self._started:
            self._seconds.append(seconds)
        self._started = True
        if len(self._seconds) == _SPEED_WINDOW and not median(self._seconds) < self._step_seconds_limit:
            raise TrainingStoppedError(
                "too_slow",
                f"step {step}: the median of the last {_SPEED_WINDOW} steps is {median(self._seconds):.2f} s, below "
                f"scale.step_seconds_limit={self._step_seconds_limit:g} was expected; replace loops over tokens by "
                "chunked operations",
            )
