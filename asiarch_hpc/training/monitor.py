"""Stops a training that cannot give a score, or none worth its time: not finite, diverged, a leak, too slow, behind."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Literal

from asiarch_hpc.errors import TrainingError

Cause = Literal["non_finite_loss", "diverged", "leak", "too_slow", "design_error", "out_of_memory", "behind"]

_SPEED_WINDOW = 5
_NORM_WINDOW = 5  # of whose gradient norms the median counts
_LOSS_WINDOW = 20  # steps over which losses are compared, since single batches differ


@dataclass(frozen=True)
class Peers:
    """What a training is held against.

    Attributes:
        losses: the reference baseline's mean loss at each step.
        step_seconds: its median seconds of a step, each like the others on `device`.
        device: where; empty where its trials had different ones.
        limits: rung step -> nats per token that the mean loss of the last `window` steps must be below.
        window: steps.
    """

    losses: Sequence[float]
    step_seconds: float
    device: str = ""
    limits: Mapping[int, float] = field(default_factory=dict)
    window: int = 1


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
        loss_rise_limit: nats per token; so has a training whose median loss over twenty steps is that far above the
            lowest such median before. Single batches differ, and spikes pass: half of the steps must be that high.
            0 for no such limit.
        gradient_limit: so has one whose median gradient norm over five steps, before clipping, is not below this.
            Clipping takes care of one spike, or two; from gradients that stay this large nothing is learned.
            0 for no such limit.
        step_seconds_limit: seconds; a median of five steps that is not below is too slow. The first step after
            a start is left out, as it compiles and allocates.
        peers: how others trained, None for the baselines themselves. A rung soon after a start, before its window is
            full, is passed over.
        leak_margin: a loss this share below the peers' over twenty steps can only know the next token.
        slow_multiple: a step may take this many times the peers', on the same device; 0 for no such limit.
        device: of this training.

    Attributes:
        lowest_loss: median over twenty steps; to be set where a training is continued.
    """

    def __init__(
        self,
        *,
        loss_limit: float,
        step_seconds_limit: float,
        loss_rise_limit: float = 0.0,
        gradient_limit: float = 0.0,
        peers: Peers | None = None,
        leak_margin: float = 0.0,
        slow_multiple: float = 0.0,
        device: str = "",
    ) -> None:
        self._loss_limit = loss_limit
        self._step_seconds_limit = step_seconds_limit
        self._loss_rise_limit = loss_rise_limit
        self._gradient_limit = gradient_limit
        self._peers = peers
        self._leak_margin = leak_margin
        self._slow_multiple = slow_multiple if peers is not None and peers.device == device else 0.0
        self._seconds: deque[float] = deque(maxlen=_SPEED_WINDOW)
        self._norms: deque[float] = deque(maxlen=_NORM_WINDOW)
        self._losses: deque[float] = deque(maxlen=_LOSS_WINDOW)
        self._rung_losses: deque[float] = deque(maxlen=peers.window if peers else 1)
        self._started = False
        self.lowest_loss = math.inf

    def check(self, step: int, *, loss: float, gradient_norm: float, seconds: float) -> None:
        """Raises TrainingStoppedError if this step's numbers rule the training out."""
        self._look_at_loss(step, loss)
        self._look_at_gradients(step, loss, gradient_norm)
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
        if self._peers is not None:
            self._compare(step, self._peers)
            self._judge_rung(step, loss, self._peers)

    def _look_at_loss(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingStoppedError(
                "non_finite_loss",
                f"step {step}: the loss is {loss}, a finite number was expected; look for divisions, logarithms and "
                "exponentials without bounds in the design",
            )
        if not loss < self._loss_limit:
            raise TrainingStoppedError(
                "diverged",
                f"step {step}: the loss is {loss:.2f} nats, below scale.loss_limit={self._loss_limit:g} was expected; "
                "normalise the design's outputs or bound its recurrence",
            )
        self._losses.append(loss)
        if len(self._losses) < _LOSS_WINDOW:
            return
        now = median(self._losses)
        if self._loss_rise_limit != 0 and not now < self.lowest_loss + self._loss_rise_limit:
            raise TrainingStoppedError(
                "diverged",
                f"step {step}: the median loss of the last {_LOSS_WINDOW} steps is {now:.2f} nats, it was "
                f"{self.lowest_loss:.2f} before; a rise below scale.loss_rise_limit={self._loss_rise_limit:g} was "
                "expected: normalise the design's outputs or bound its recurrence",
            )
        self.lowest_loss = min(self.lowest_loss, now)

    def _look_at_gradients(self, step: int, loss: float, norm: float) -> None:
        if not math.isfinite(norm):
            raise TrainingStoppedError(
                "non_finite_loss",
                f"step {step}: the gradient norm is {norm} at loss {loss:.4f}, a finite number was expected; look for "
                "square roots at zero and unbounded exponentials in the design",
            )
        self._norms.append(norm)
        if (
            self._gradient_limit != 0
            and len(self._norms) == _NORM_WINDOW
            and not median(self._norms) < self._gradient_limit
        ):
            raise TrainingStoppedError(
                "diverged",
                f"step {step}: the median gradient norm of the last {_NORM_WINDOW} steps is {median(self._norms):.3g}, "
                f"below scale.gradient_limit={self._gradient_limit:g} was expected; normalise the design's outputs, or "
                "bound what its recurrence multiplies up over tokens",
            )

    def _compare(self, step: int, peers: Peers) -> None:
        beside = peers.losses[max(0, step - _LOSS_WINDOW) : step]
        if self._leak_margin > 0 and len(self._losses) == len(beside) == _LOSS_WINDOW:
            own, theirs = fmean(self._losses), fmean(beside)
            if own < (1.0 - self._leak_margin) * theirs:
                raise TrainingStoppedError(
                    "leak",
                    f"step {step}: the mean loss of the last {_LOSS_WINDOW} steps is {own:.4f}, the reference "
                    f"baseline's {theirs:.4f}; more than {self._leak_margin:.0%} below it means that the design sees "
                    "the tokens that it predicts: look for anything that carries later positions to earlier ones",
                )
        limit = self._slow_multiple * peers.step_seconds
        if limit > 0 and len(self._seconds) == _SPEED_WINDOW and not median(self._seconds) < limit:
            raise TrainingStoppedError(
                "too_slow",
                f"step {step}: the median of the last {_SPEED_WINDOW} steps is {median(self._seconds):.4f} s, the "
                f"reference baseline's {peers.step_seconds:.4f} s; less than {self._slow_multiple:g} times that was "
                "expected: replace loops over tokens by chunked operations",
            )

    def _judge_rung(self, step: int, loss: float, peers: Peers) -> None:
        self._rung_losses.append(loss)
        limit = peers.limits.get(step)
        if limit is not None and len(self._rung_losses) == peers.window and not fmean(self._rung_losses) < limit:
            raise TrainingStoppedError(
                "behind",
                f"step {step}: the mean loss of the last {peers.window} steps is {fmean(self._rung_losses):.4f}, below "
                f"{limit:.4f} was expected of a design that can still enter the pool; its training was stopped early",
            )
