"""How far a training has come, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

_FINAL_WINDOW = 10  # steps whose mean is the final loss: a single batch is too noisy to report


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """How a training ended. Losses in nats per token; `seconds` and `tokens` add up over all its parts.

    `final_loss` is the mean of the last ten steps. `weights_path` and `weights_sha256` are set when finished.
    `resumed` counts how often the training was continued from a checkpoint. `micro_batch` is the rows of one pass,
    `compiled` whether the blocks ran compiled, `not_compiled_because` why they did not although they should have,
    `ranks` the processes, `engine` which one made the last part's steps,
    `documents_given` whether the design asked which documents tokens are of, and was told.
    """

    status: Literal["finished", "interrupted"]
    steps: int
    tokens: int
    first_loss: float
    final_loss: float
    seconds: float
    tokens_per_second: float
    weights_path: Path | None
    weights_sha256: str
    parameters: int
    device: str
    precision: str
    resumed: int
    micro_batch: int
    compiled: bool
    not_compiled_because: str
    ranks: int
    engine: str
    documents_given: bool


@dataclass
class Progress:
    """What the loop itself must remember across an interruption; `checkpoint` holds it."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_loss: float = math.nan
    resumed: int = 0
    last_losses: list[float] = field(default_factory=list)
    lowest_loss: float = math.inf  # see Monitor

    @property
    def final_loss(self) -> float:
        return fmean(self.last_losses) if self.last_losses else math.nan

    def count(self, loss: float, tokens: int, seconds: float) -> None:
        """Adds one step."""
        if self.step == 0:
            self.first_loss = loss
        self.step += 1
        self.tokens += tokens
        self.seconds += seconds
        self.last_losses = [*self.last_losses, loss][-_FINAL_WINDOW:]
