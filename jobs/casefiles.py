"""Reads what a run knows about its designs, for agents."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from asiarch_hpc.agents.casefile import CaseFile, Lesson, Standard
from asiarch_hpc.config import stage_of
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.hashing import design_id
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.designs.tree import UnitTree, tree_from_json
from asiarch_hpc.errors import DesignError, RecordError
from asiarch_hpc.knowledge.cognition import cognition_base
from asiarch_hpc.records import (
    Assessment,
    BaselineStats,
    Evaluation,
    Generation,
    Reminder,
    Score,
    TaskScore,
    from_json,
)
from asiarch_hpc.search.policies import Choice
from asiarch_hpc.store.curves import read_curves
from asiarch_hpc.store.experiments import read_experiment
from asiarch_hpc.store.files import read_json
from asiarch_hpc.store.layout import ExperimentLayout, TrialLayout
from jobs.workspace import Workspace


@dataclass
class CaseFiles:
    """The designs of one run; each is read once."""

    space: Workspace
    _cases: dict[str, CaseFile] = field(default_factory=dict)

    def of(self, identifier: str) -> CaseFile:
        """Everything known about an experiment.

        Raises:
            RecordError: it is not there, or does not match its hash.
        """
        if identifier not in self._cases:
            self._cases[identifier] = self._read(identifier)
        return self._cases[identifier]

    def chosen(self, choice: Choice) -> CaseFile:
        """A design to breed from; a seed that the run did not train has no results."""
        if choice.kind == "experiment":
            return self.of(choice.id)
        source = compose(seed_tree(choice.id))
        text = "A seed design of this search; it was not trained in this run."
        return CaseFile(id=design_id(source), name=choice.id, role="seed", form="tree", motivation=text, source=source)

    def tree(self, choice: Choice) -> UnitTree | None:
        """The unit tree of a design to breed from; None for a program.

        Raises:
            DesignError: the tree does not compose to the design; it was edited.
        """
        if choice.kind == "seed":
            return seed_tree(choice.id)
        folder = self.space.layout.experiment(choice.id)
        read_experiment(folder)
        if not folder.units.exists():
            return None
        tree = tree_from_json(read_json(folder.units))
        if design_id(compose(tree)) != choice.id:
            raise DesignError(f"{folder.units}: this tree does not compose to design {choice.id}; it was edited")
        return tree

    def generation(self, number: int) -> Generation:
        path = self.space.layout.generation(number)
        return from_json(Generation, read_json(path), source=str(path))

    def standard(self, baselines: tuple[BaselineStats, ...]) -> Standard:
        """The baselines, the reference first, with the mean and spread of their accuracy at each task."""
        wanted = self.space.config.baselines.reference
        ordered = sorted(baselines, key=lambda stats: (stats.name != wanted, stats.name))
        return Standard(
            baselines=ordered,
            tasks={stats.name: _spread(list(self._evaluations(stats.experiment))) for stats in ordered},
        )

    def known(self) -> frozenset[str]:
        """Ids of all designs of the run, whatever became of them."""
        return frozenset(folder.root.name for folder in self.space.layout.all_experiments())

    def _read(self, identifier: str) -> CaseFile:
        folder = self.space.layout.experiment(identifier)
        record, source = self.space.design(identifier)
        evaluations = list(self._evaluations(identifier))
        assessment = _assessment(folder)
        return CaseFile(
            id=identifier,
            name=record.name,
            role=record.role,
            form=record.form,
            motivation=_body(folder.motivation.read_text()),
            source=source,
            gate=self.space.gate_report(identifier),
            score=_optional(Score, folder),
            loss=_mean([e.loss for e in evaluations]),
            bits_per_byte=_mean([e.bits_per_byte for e in evaluations]),
            benchmark=_mean([e.benchmark for e in evaluations]),
            tasks=_mean_tasks(evaluations),
            curve=self._curve(folder),
            analysis=assessment.analysis if assessment else None,
            lessons=[lesson for r in (assessment.cognitions if assessment else ()) for lesson in _lessons(r)],
        )

    def _evaluations(self, identifier: str) -> Iterator[Evaluation]:
        for trial in self._trials(self.space.layout.experiment(identifier)):
            if trial.evaluation.exists():
                yield from_json(Evaluation, read_json(trial.evaluation), source=str(trial.evaluation))

    def _trials(self, folder: ExperimentLayout) -> list[TrialLayout]:
        """Those of exploration; what is written about a design does not depend on whether it went on."""
        names = sorted(path.name for path in folder.trials.iterdir()) if folder.trials.is_dir() else []
        return [folder.trial(name) for name in names if stage_of(name, self.space.config) is None]

    def _curve(self, folder: ExperimentLayout) -> list[tuple[int, float]]:
        """Training loss of the first trial that has a curve."""
        for trial in self._trials(folder):
            if trial.curves.exists():
                columns = read_curves(trial.curves)
                return [(int(s), float(x)) for s, x in zip(columns["step"], columns["loss"], strict=True)]
        return []


def identifier(choice: Choice) -> str:
    """The id of a design to breed from; that of a seed design is its source's, whether it was trained or not."""
    return choice.id if choice.kind == "experiment" else design_id(compose(seed_tree(choice.id)))


def _body(motivation: str) -> str:
    """A motivation without its headline, which is the design's name."""
    head, _, rest = motivation.partition("\n")
    return rest.strip() if head.startswith("# ") else motivation.strip()


def _assessment(folder: ExperimentLayout) -> Assessment | None:
    if not folder.assessment.exists():
        return None
    return from_json(Assessment, read_json(folder.assessment), source=str(folder.assessment))


def _optional(cls: type[Score], folder: ExperimentLayout) -> Score | None:
    return from_json(cls, read_json(folder.score), source=str(folder.score)) if folder.score.exists() else None


def _lessons(reminder: Reminder) -> list[Lesson]:
    """What a reminder reminds of; nothing where the entry is gone since."""
    with contextlib.suppress(RecordError, IndexError):
        for entry in cognition_base():
            if entry.paper.id == reminder.paper:
                found = entry.cognitions[reminder.number]
                return [
                    Lesson(
                        paper=entry.paper.id,
                        title=entry.paper.title,
                        insight=found.insight,
                        algorithm=found.algorithm,
                        mechanism=found.mechanism,
                        formulas=found.formulas,
                        implementation=found.implementation,
                        conditions=found.conditions,
                        similarity=reminder.similarity,
                    )
                ]
    return []


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _mean_tasks(evaluations: list[Evaluation]) -> dict[str, TaskScore]:
    """Each task over all trials; the questions are the same, so the standard error is not divided."""
    names = evaluations[0].tasks if evaluations else {}
    return {
        name: TaskScore(
            accuracy=statistics.fmean(e.tasks[name].accuracy for e in evaluations),
            stderr=statistics.fmean(e.tasks[name].stderr for e in evaluations),
            chance=evaluations[0].tasks[name].chance,
            questions=evaluations[0].tasks[name].questions,
            metric=evaluations[0].tasks[name].metric,
            counted=evaluations[0].tasks[name].counted,
        )
        for name in names
    }


def _spread(evaluations: list[Evaluation]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for name in evaluations[0].tasks if evaluations else {}:
        values = [e.tasks[name].accuracy for e in evaluations if name in e.tasks]
        found[name] = (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
    return found
