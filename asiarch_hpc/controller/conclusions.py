"""What follows from evaluations: scores, pool generations, promotions. Written to the tree and to the journal.

Everything here is a function of the state, so that a second call, or a rebuilt state, gives the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from asiarch_hpc.config import Config, uses_agents
from asiarch_hpc.controller import scoring, stages, works
from asiarch_hpc.controller.noise import known_spread
from asiarch_hpc.controller.state import ExperimentState, RunState
from asiarch_hpc.errors import EvaluationError, RecordError
from asiarch_hpc.records import Assessment, Generation, from_json, to_json
from asiarch_hpc.search import population
from asiarch_hpc.search.population import Population
from asiarch_hpc.store.files import move_aside, read_json, write_json
from asiarch_hpc.store.layout import RunLayout

Record = Callable[..., None]  # journals events, then applies them to the state


def conclude(layout: RunLayout, state: RunState, config: Config, record: Record) -> None:
    """Scores what is evaluated, builds the generations that are complete, and decides and scores the stages."""
    if not state.stats and (stats := scoring.baselines(state, config, known_spread(layout, config))):
        record({"event": "baselines", "stats": [to_json(s) for s in stats]})
    for experiment in scoring.unscored(state, config):
        _score(experiment, layout, state, config, record)
    _build_generations(layout, state, config, record)
    for name in config.stages:
        if not _decide(name, state, config, record):
            break
        _score_stage(name, layout, state, config, record)
        _write_stage(name, layout, state)


def restore(layout: RunLayout, state: RunState, config: Config, record: Record) -> None:
    """Writes pool generations that the tree lacks, and puts right those that were changed."""
    for number in range(state.generations):
        _write_generation(scoring.generation(number, state, config), layout, record)


def _score(experiment: ExperimentState, layout: RunLayout, state: RunState, config: Config, record: Record) -> None:
    try:
        score = scoring.score(experiment, state, config)
    except EvaluationError as error:
        place = {"slot": None, "attempt": None, "experiment": experiment.id, "trial": max(experiment.evaluations)}
        failure = {"stage": "scoring", "cause": "refused", "message": str(error)}
        record({"event": "failed", "key": f"score-{experiment.id}", **failure, **place})
        return
    folder = layout.experiment(score.experiment)
    if not uses_agents(config):  # else the file is the assess job's
        write_json(folder.assessment, to_json(Assessment(experiment=score.experiment, judge=score.judgement)))
    write_json(folder.score, to_json(score))
    record({"event": "scored", "score": to_json(score)})


def _decide(name: str, state: RunState, config: Config, record: Record) -> bool:
    """Decides on a stage once the scale before is done; whether it is decided."""
    if name in state.stages and state.stages[name].decided:
        return True
    if not stages.due(name, state, config, explored=works.explored(state, config) is not None):
        return False
    found = stages.decisions(name, state, config)
    record({"event": "promoted", "scale": name, "decisions": [to_json(decision) for decision in found]})
    return True


def _score_stage(name: str, layout: RunLayout, state: RunState, config: Config, record: Record) -> None:
    known = None if state.stages[name].stats else known_spread(layout, config, name)
    if not state.stages[name].stats and (stats := stages.statistics(name, state, config, known)):
        record({"event": "baselines", "scale": name, "stats": [to_json(s) for s in stats]})
    for experiment in stages.unscored(name, state, config):
        try:
            score = scoring.score(experiment, state, config, name)
        except EvaluationError as error:
            failure = {"stage": "scoring", "cause": "refused", "message": str(error), "experiment": experiment.id}
            key = f"score-{experiment.id}-{name}"
            record({"event": "failed", "key": key, "scale": name, "trial": name, **failure})
        else:
            record({"event": "scored", "scale": name, "score": to_json(score)})


def _write_stage(name: str, layout: RunLayout, state: RunState) -> None:
    """Writes a stage's file anew when there is more to tell: decisions with their reasons, and what came of them."""
    stage = state.stages[name]
    if stage.written == stage.size:
        return
    content = {
        "stage": name,
        "decisions": [
            {**to_json(decision), "name": state.experiments[decision.experiment].name} for decision in stage.decisions
        ],
        "baselines": [to_json(stats) for stats in stage.stats],
        "scores": [to_json(score) for _, score in sorted(stage.scores.items())],
        "failures": dict(sorted(stage.failures.items())),
    }
    write_json(layout.stage(name), content)
    stage.written = stage.size


def _build_generations(layout: RunLayout, state: RunState, config: Config, record: Record) -> None:
    while state.stats:
        plan = population.plan(Population(state.slots, state.generations), config.search)
        number = plan.build_generation
        if number is None:
            return
        _write_generation(scoring.generation(number, state, config), layout, record)
        record({"event": "generation", "number": number})


def _write_generation(built: Generation, layout: RunLayout, record: Record) -> None:
    """Writes a generation once. One that differs is a former state of a tree that was damaged: it is kept aside."""
    path, data = layout.generation(built.number), to_json(built)
    if path.exists():
        with contextlib.suppress(RecordError):
            if from_json(Generation, read_json(path), source=str(path)) == built:
                return
        message = f"{path}: differs from what the tree gives; moved aside as {move_aside(path).name}"
        record({"event": "moved_aside", "message": message})
    write_json(path, data)
