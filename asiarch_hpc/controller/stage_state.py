"""What the controller knows of one stage; a fold of journal events, like the rest of its state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from asiarch_hpc.records import BaselineStats, Evaluation, Score, from_json
from asiarch_hpc.search.promotion import Decision


@dataclass(slots=True)
class StageState:
    """Who was promoted and why, and what became of them. Everything but the decisions is by experiment.

    `evaluations` are by trial within an experiment, `parameters` without embeddings, `speeds` in tokens per second.
    `written` is the `size` that the stage's file was last written with.
    """

    decided: bool = False
    decisions: tuple[Decision, ...] = ()
    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    speeds: dict[str, list[float]] = field(default_factory=dict)
    stats: tuple[BaselineStats, ...] = ()
    scores: dict[str, Score] = field(default_factory=dict)
    written: int = -1

    @property
    def size(self) -> int:
        """Grows with everything that the stage's file tells."""
        return len(self.decisions) + len(self.stats) + len(self.scores) + len(self.failures)

    @property
    def promoted(self) -> tuple[str, ...]:
        """Designs that go on, the best first."""
        return tuple(decision.experiment for decision in self.decisions if decision.promoted)

    def decide(self, event: dict[str, Any]) -> None:
        """Folds the decisions."""
        self.decisions = tuple(from_json(Decision, decision, source="journal") for decision in event["decisions"])
        self.decided = True

    def train(self, event: dict[str, Any]) -> None:
        """Folds a training with its evaluation."""
        identifier = event["experiment"]
        evaluation = from_json(Evaluation, event["evaluation"], source="journal")
        self.evaluations.setdefault(identifier, {})[event["trial"]] = evaluation
        self.parameters[identifier] = event["parameters"]
        if event.get("tokens_per_second"):
            self.speeds.setdefault(identifier, []).append(event["tokens_per_second"])

    def fail(self, event: dict[str, Any]) -> None:
        """Folds a training or an evaluation that failed."""
        self.failures[event["experiment"]] = f"{event['cause']}: {event['message'][:500]}"
