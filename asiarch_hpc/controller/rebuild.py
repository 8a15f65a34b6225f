"""The journal's content from the tree alone. Scores and pool generations follow from it by the usual rules."""

from __future__ import annotations

from collections import defaultdict

from asiarch_hpc.config import Config, stage_of, uses_agents
from asiarch_hpc.controller.state import Event
from asiarch_hpc.records import to_json
from asiarch_hpc.search.population import slot_limit
from asiarch_hpc.store.experiments import Scan, StoredExperiment


def events_of(found: Scan, config: Config) -> list[Event]:
    """Events that lead to the state which the tree shows; baselines first, then slots in order.

    An attempt without a record (its proposal failed, or was damaged) counts as failed when a later one exists,
    since a slot is only tried again after a failure.
    """
    events: list[Event] = [{"event": "moved_aside", "message": message} for message in found.damaged]
    slots: dict[int, dict[int, StoredExperiment]] = defaultdict(dict)
    names = {config.baselines.reference: 0}
    baselines = [stored for stored in found.experiments if stored.record.slot is None]
    for stored in sorted(baselines, key=lambda stored: names.get(stored.record.name, 1)):
        events += _experiment(stored, f"propose-{stored.record.name}", config)
    for stored in found.experiments:
        slot, attempt = stored.record.slot, stored.record.attempt or 0
        if slot is None:
            continue
        if 0 <= slot < slot_limit(config.search) and 0 <= attempt < config.search.attempts:
            # A job that died right after writing its experiment may have left one beside that which went on.
            slots[slot][attempt] = max(slots[slot].get(attempt, stored), stored, key=_progress)
        else:
            message = f"experiment {stored.record.id}: slot {slot}, attempt {attempt} do not exist; it is left out"
            events.append({"event": "moved_aside", "message": message})
    for slot, attempts in sorted(slots.items()):
        for attempt in range(max(attempts) + 1):
            key = f"propose-{slot:05d}-{attempt:02d}"
            if attempt in attempts:
                events += _experiment(attempts[attempt], key, config)
                if attempt < max(attempts) and _hangs(attempts[attempt]):
                    events.append(_refused(attempts[attempt]))
            else:
                events.append({"event": "proposed", "key": key, "duplicate": True, "slot": slot, "attempt": attempt})
    return events


def _experiment(stored: StoredExperiment, key: str, config: Config) -> list[Event]:
    record = stored.record
    proposed = {
        "event": "proposed",
        "key": key,
        "duplicate": False,
        "id": record.id,
        "name": record.name,
        "role": record.role,
        "form": record.form,
        "operator": record.operator,
        "proposer": record.proposer,
        "parents": list(record.parents),
        "gate": to_json(stored.gate),
        "slot": record.slot,
        "attempt": record.attempt,
        "tokens": stored.tokens,
    }
    events: list[Event] = [proposed]
    for trial in stored.trials:
        place = {"experiment": record.id, "trial": trial.name, "scale": stage_of(trial.name, config)}
        place["key"] = f"train-{record.id}-{trial.name}"
        if trial.evaluation is not None and trial.record is not None:
            evaluation = to_json(trial.evaluation)
            speed = {name: getattr(trial.record, name) for name in ("tokens_per_second", "parameters")}
            seconds = trial.record.train_seconds + trial.evaluation.seconds
            events.append({"event": "trained", "evaluation": evaluation, "seconds": seconds, **speed, **place})
        elif trial.failure is not None:
            slot = {"slot": record.slot, "attempt": record.attempt}
            cause = {name: str(trial.failure.get(name, "unknown")) for name in ("stage", "cause", "message")}
            events.append({"event": "failed", **cause, **slot, **place})
    if (assessment := stored.assessment) is not None and _whole(stored, config):
        said = {"assessment": to_json(assessment), "tokens": assessment.tokens}
        events.append({"event": "assessed", "key": f"assess-{record.id}", "experiment": record.id, **said})
    return events


def _progress(stored: StoredExperiment) -> tuple[bool, int]:
    return stored.score is not None, len(stored.trials)


def _hangs(stored: StoredExperiment) -> bool:
    """Whether nothing in the tree says why the search went on to another attempt."""
    return stored.gate.passed and stored.score is None and not any(trial.failure for trial in stored.trials)


def _refused(stored: StoredExperiment) -> Event:
    """The end of a design for which no grade or no score was to be had."""
    record = stored.record
    place = {"slot": record.slot, "attempt": record.attempt, "experiment": record.id, "trial": None}
    text = "no grade or no score was to be had"
    return {
        "event": "failed",
        "key": f"score-{record.id}",
        "stage": "scoring",
        "cause": "refused",
        "message": text,
        **place,
    }


def _whole(stored: StoredExperiment, config: Config) -> bool:
    """Whether an assessment of language models has all its parts; what is missing is asked for again."""
    if not uses_agents(config) or stored.assessment is None or stored.assessment.analysis is None:
        return False
    graded = config.fitness.judge == "llm" and stored.record.role == "candidate"
    return stored.assessment.judge is not None or not graded
