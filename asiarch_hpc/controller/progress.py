"""The state as people see it: the snapshot for the view and the rows of the leaderboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import fmean

from asiarch_hpc.config import Config
from asiarch_hpc.controller.leaderboard import LeaderRow
from asiarch_hpc.controller.scheduler import JobStatus
from asiarch_hpc.controller.stages import settled
from asiarch_hpc.controller.state import ExperimentState, RunState
from asiarch_hpc.controller.trials import baseline_names, complete
from asiarch_hpc.controller.view import RunningJob, Snapshot
from asiarch_hpc.records import Score
from asiarch_hpc.search.baselines import loss_difference


def snapshot(
    run: str,
    state: RunState,
    config: Config,
    *,
    now: float,
    known: Mapping[str, JobStatus] | None = None,
    trouble: str = "",
    live: bool = True,
) -> Snapshot:
    """What to show now. `known` is the scheduler's last answer, `live` false when no controller runs."""
    known = known or {}
    queued = {job for job, status in known.items() if status.state == "queued"}
    running = [busy for busy in state.busy.values() if busy.job not in queued] if live else []
    candidates = _candidates(state)
    first = best(state)
    elapsed = state.active_seconds + (max(0.0, now - state.latest) if live and state.latest else 0.0)
    return Snapshot(
        run=run,
        phase=trouble or _phase(state, config, live),
        generation=state.generations - 1 if state.generations else None,
        counts=Counter(_stage(e, state, config) for e in state.experiments.values()),
        running=tuple(RunningJob(kind=b.kind, name=b.work["label"], seconds=now - b.submitted) for b in running),
        queued=len(state.busy) - len(running) if live else 0,
        scored=len(candidates),
        wanted=config.search.designs,
        best=first,
        best_name=state.experiments[first.experiment].name if first else "",
        best_runs=len(config.scale.seeds),
        reference=state.stats[0] if state.stats else None,
        baselines=state.stats,
        noise_level=config.fitness.noise_level,
        stages=tuple(_stage_line(name, state, config) for name in config.stages if _begun(name, state)),
        failures=dict(state.causes),
        elapsed=elapsed,
        left=_left(state, config, elapsed, len(candidates)),
        messages=tuple(state.recent),
        messages_total=state.said,
        done=state.finished is not None,
    )


def best(state: RunState) -> Score | None:
    """The candidate of highest fitness that was not discarded."""
    return max(_candidates(state), key=lambda score: score.fitness, default=None)


def rows(state: RunState) -> list[LeaderRow]:
    """One row for each scored experiment."""
    return [
        LeaderRow(
            score=score,
            name=experiment.name,
            role=experiment.role,
            runs=len(experiment.evaluations),
            parameters=experiment.gate.parameters,
            modelled_seconds_per_token=experiment.gate.modelled_seconds_per_token,
            tokens_per_second=fmean(experiment.speeds) if experiment.speeds else None,
        )
        for score in state.scores.values()
        for experiment in [state.experiments[score.experiment]]
    ]


def stopped_early(state: RunState) -> list[str]:
    """One line for each design whose training was ended because it was behind; such designs have no score."""
    return [
        f"{experiment.name} ({experiment.id[:8]}), {next(iter(experiment.failures.values()))}"
        for experiment in state.experiments.values()
        if experiment.failed_cause == "behind"
    ]


def stage_rows(name: str, state: RunState) -> list[LeaderRow]:
    """One row for each experiment that was scored at a stage; its modelled speed is that of exploration's size."""
    stage = state.stages[name]
    return [
        LeaderRow(
            score=score,
            name=experiment.name,
            role=experiment.role,
            runs=len(stage.evaluations[identifier]),
            parameters=stage.parameters[identifier],
            modelled_seconds_per_token=experiment.gate.modelled_seconds_per_token,
            tokens_per_second=fmean(stage.speeds[identifier]) if identifier in stage.speeds else None,
        )
        for identifier, score in stage.scores.items()
        for experiment in [state.experiments[identifier]]
    ]


def _begun(name: str, state: RunState) -> bool:
    return name in state.stages and state.stages[name].decided


def _stage_line(name: str, state: RunState, config: Config) -> str:
    """How far a stage has come, and how its designs stand."""
    stage = state.stages[name]
    scored = [row for row in stage_rows(name, state) if row.role == "candidate" and row.score.discarded is None]
    line = f"{name}: {len(stage.promoted)} of {len(stage.decisions)} designs promoted"
    if not stage.promoted:
        return f"{line}, nothing is trained"
    failed = sum(identifier in stage.failures for identifier in stage.promoted)
    line += f", {len(scored)} scored" + (f", {failed} failed" if failed else "")
    if not settled(stage):
        own = config.stages[name]
        wanted = (1 + len(own.baselines)) * len(own.baseline_seeds) + len(stage.promoted) * len(own.scale.seeds)
        line += f", {sum(map(len, stage.evaluations.values()))} of {wanted} trainings done"
    if not scored or not stage.stats:
        return line
    level = config.fitness.noise_level
    found = [loss_difference(row.score, row.runs, stage.stats[0], stage.stats, level) for row in scored]
    best = min(range(len(scored)), key=lambda index: scored[index].score.loss)
    return (
        f"{line}; lowest loss {scored[best].name} {scored[best].score.loss:.4f} ({found[best].value:+.4f}, "
        f"t = {found[best].t:.1f} against {stage.stats[0].name}: {found[best].verdict}), "
        f"{sum(f.verdict == 'better' for f in found)} better beyond noise"
    )


def _candidates(state: RunState) -> list[Score]:
    return [score for score in state.scores.values() if score.slot is not None and score.discarded is None]


def _phase(state: RunState, config: Config, live: bool) -> str:
    if state.finished is not None:
        return f"finished: {state.finished}"
    if not live:
        return f"stopped with {len(state.busy)} jobs under way; the command that started the run resumes it"
    if begun := [name for name in config.stages if _begun(name, state)]:
        return next((f"stage {name}" for name in begun if not settled(state.stages[name])), "stages are done")
    if state.stats:
        return "searching" if config.search.designs else "the baselines are trained"
    trained, wanted = _baseline_trainings(state, config)
    return f"training the baselines, {trained} of {wanted} trainings done"


def _stage(experiment: ExperimentState, state: RunState, config: Config) -> str:
    """The experiment's state in the words of the design."""
    if experiment.id in state.scores:
        return "discarded" if state.scores[experiment.id].discarded else "scored"
    if not experiment.gate.passed:
        return "rejected"
    if experiment.failures:
        return "stopped early" if experiment.failed_cause == "behind" else "failed"
    if complete(experiment, config):
        return "assessed" if experiment.assessed else "evaluated"
    return "training" if any(b.work["experiment"] == experiment.id for b in state.busy.values()) else "admitted"


def _left(state: RunState, config: Config, elapsed: float, scored: int) -> float | None:
    """Time left of exploration if the rest goes on as it went so far; trainings of baselines and candidates count
    alike. Of stages nothing is known."""
    if any(_begun(name, state) for name in config.stages):
        return None
    trained, wanted = _baseline_trainings(state, config)
    done, total = trained + scored, wanted + config.search.designs
    return elapsed * (total - done) / done if done >= 2 else None


def _baseline_trainings(state: RunState, config: Config) -> tuple[int, int]:
    """Trainings of exploration's baselines: done, wanted."""
    trained = sum(len(e.evaluations) for e in state.experiments.values() if e.role == "baseline")
    return trained, len(config.baselines.seeds) * len(baseline_names(config))
