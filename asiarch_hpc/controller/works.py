"""What should run now: a pure function of the state, in order of urgency."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from statistics import fmean

from asiarch_hpc.config import Config, ResourceConfig, at_stage, proposers, uses_agents
from asiarch_hpc.controller import stages
from asiarch_hpc.controller.state import Busy, ExperimentState, RunState, WorkSpec
from asiarch_hpc.controller.trials import all_baselines, baseline_names, complete, trials_of
from asiarch_hpc.records import JobKind, to_json
from asiarch_hpc.search import population
from asiarch_hpc.search.population import Population


def wanted(state: RunState, config: Config, capacity: int, now: float) -> list[WorkSpec]:
    """Work that is neither done, failed nor under way: trainings first, then designs to train next.

    Args:
        capacity: jobs that may run at once, which bounds how many designs are worth having in advance.
        now: seconds since the epoch, for what runs and costs GPU seconds meanwhile.
    """
    specs = [
        *_baselines(state, config),
        *_trainings(state, config),
        *_assessments(state, config),
        *_proposals(state, config, capacity, now),
        *(stages.trainings(state, config) if gpu_seconds_spent(state, config, now) is None else ()),
    ]
    return [spec for spec in specs if spec.key not in state.outcomes and spec.key not in state.busy]


def explored(state: RunState, config: Config) -> str | None:
    """Why exploration has ended, so that its best designs can go on; None: it has not.

    It ends by its plan, or with its language models' budget used up and nothing under way. Once any design has been
    promoted, it has ended for good.
    """
    if population.plan(Population(state.slots, state.generations), config.search).done:
        return "complete"
    spent_tokens = tokens_spent(state, config)
    if promoting(state):
        return spent_tokens or "complete"
    if not state.stats or any(busy.kind != "serve" for busy in state.busy.values()):
        return None
    specs = [*_baselines(state, config), *_trainings(state, config), *_assessments(state, config)]
    return spent_tokens if all(spec.key in state.outcomes for spec in specs) else None


def promoting(state: RunState) -> bool:
    """Whether designs were chosen for a stage."""
    return any(stage.decided for stage in state.stages.values())


def talks(kind: str, proposer: str | None) -> bool:
    """Whether work of this kind talks to language models."""
    return kind in ("debug", "assess") or (kind == "propose" and proposer == "llm")


def gpus_of(busy: Busy, config: Config) -> int:
    """GPUs that a job holds; a server has its own number."""
    if busy.kind == "serve":
        return next((s.gpus for s in config.agents.servers if busy.key.startswith(f"serve-{s.name}-")), 0)
    resources: ResourceConfig = getattr(at_stage(config, busy.work.get("scale")).executor, busy.kind)
    return resources.gpus * resources.nodes


def spent(state: RunState, config: Config, now: float) -> str | None:
    """Which of the run's budgets is used up, in words; None while all have something left.

    Then nothing more is proposed; what is trained by then is still assessed and scored.
    """
    return tokens_spent(state, config) or gpu_seconds_spent(state, config, now)


def tokens_spent(state: RunState, config: Config) -> str | None:
    """Whether the budget of tokens is used up, in words."""
    limit = config.agents.tokens
    return f"agents.tokens={limit} are used ({state.tokens})" if limit and state.tokens >= limit else None


def gpu_seconds_spent(state: RunState, config: Config, now: float) -> str | None:
    """Whether the budget of GPU seconds is used up, in words. Then no training of a stage starts either."""
    limit = config.agents.gpu_seconds
    running = sum((now - busy.submitted) * gpus_of(busy, config) for busy in state.busy.values())
    if limit and state.gpu_seconds + running >= limit:
        return f"agents.gpu_seconds={limit:g} are used ({state.gpu_seconds + running:.0f})"
    return None


def proposer_of(slot: int, attempt: int, config: Config) -> str:
    """Who proposes for a slot's attempt: drawn by the configured shares, the same in every controller."""
    shares = proposers(config)
    rng = random.Random(f"asiarch/{config.search.seed}/proposer/{slot}/{attempt}")
    return rng.choices(list(shares), list(shares.values()))[0]


def _baselines(state: RunState, config: Config) -> Iterator[WorkSpec]:
    """The reference's measures are what the other baselines, and every candidate, are matched to."""
    reference = state.baselines.get(config.baselines.reference)
    for name in all_baselines(config):
        if name != config.baselines.reference and reference is None:
            continue
        yield WorkSpec(
            key=f"propose-{name}",
            kind="propose",
            function="jobs.propose:baseline",
            arguments={"design": name, "reference": None if name == config.baselines.reference else reference},
            label=f"baseline {name}",
        )


def _trainings(state: RunState, config: Config) -> Iterator[WorkSpec]:
    reference = state.baselines.get(config.baselines.reference)
    for experiment in state.experiments.values():
        if not experiment.gate.passed or experiment.id in state.scores or experiment.failures:
            continue
        if experiment.role == "baseline" and experiment.name not in baseline_names(config):
            continue
        beside = {"reference": reference} if experiment.role != "baseline" else {}
        for trial, seed in trials_of(experiment, config).items():
            yield WorkSpec(
                key=f"train-{experiment.id}-{trial}",
                kind="train",
                function="jobs.train:run",
                arguments={"experiment": experiment.id, "trial": trial, "seed": seed, **beside},
                experiment=experiment.id,
                trial=trial,
                label=f"{experiment.name} s{seed}",
            )


def needs_assessment(experiment: ExperimentState, config: Config) -> bool:
    """Whether language models have their say before the experiment is scored."""
    return uses_agents(config) and experiment.role == "candidate" and not experiment.assessed


def _assessments(state: RunState, config: Config) -> Iterator[WorkSpec]:
    """Grades and analyses of what is trained; of the baselines an analysis alone, they are the judge's anchors."""
    if not uses_agents(config) or not state.stats:
        return
    for experiment in state.experiments.values():
        if experiment.assessed or experiment.failures or not complete(experiment, config):
            continue
        yield WorkSpec(
            key=f"assess-{experiment.id}",
            kind="assess",
            function="jobs.assess:run",
            arguments={
                "experiment": experiment.id,
                "judge": config.fitness.judge == "llm" and experiment.role == "candidate",
                "baselines": [to_json(stats) for stats in state.stats],
                "siblings": _siblings(experiment, state, config),
                "tokens": 0,
            },
            experiment=experiment.id,
            label=experiment.name,
        )


def _siblings(experiment: ExperimentState, state: RunState, config: Config) -> list[str]:
    """Scored designs of the same parent, the latest first."""
    if not experiment.parents:
        return []
    found = [
        other.id
        for other in state.experiments.values()
        if other.id in state.scores and other.parents[:1] == experiment.parents[:1] and other.id != experiment.id
    ]
    return found[::-1][: config.agents.siblings]


def _budget(state: RunState, config: Config) -> int | None:
    """Tokens that are left of the run's budget when all jobs under way use what they may; None without a budget."""
    if not config.agents.tokens:
        return None
    under_way = sum(talks(busy.kind, busy.work.get("proposer")) for busy in state.busy.values())
    return config.agents.tokens - state.tokens - under_way * config.agents.tokens_per_job


def _proposals(state: RunState, config: Config, capacity: int, now: float) -> Iterator[WorkSpec]:
    if not state.stats or spent(state, config, now) or promoting(state):
        return
    budget = _budget(state, config)
    plan = population.plan(Population(state.slots, state.generations), config.search)
    room = designs_wanted(state, config, capacity) if "llm" in proposers(config) else 0
    reference = state.baselines[config.baselines.reference]
    for slot, attempt, generation in plan.propose:
        place = {"slot": slot, "attempt": attempt, "generation": generation, "reference": reference}
        label = f"slot {slot}" + (f" (try {attempt + 1})" if attempt else "")
        proposer = proposer_of(slot, attempt, config)
        broken = _to_repair(slot, attempt, state, config)
        asks = broken is not None or proposer == "llm"
        if asks and (room <= 0 or (budget is not None and budget <= 0)):
            continue
        tokens = min(budget, config.agents.tokens_per_job) if budget is not None else 0
        kind: JobKind = "propose"
        function, arguments = "jobs.propose:candidate", place
        if broken is not None:
            kind, function, label = "debug", "jobs.debug:run", f"{broken.name} for {label}"
            arguments = {**place, "experiment": broken.id, "tokens": tokens}
        elif proposer == "llm":
            function, label = "jobs.research:candidate", f"{label} (llm)"
            arguments = {**place, "tokens": tokens}
        if asks:
            room -= 1
            budget = None if budget is None else budget - tokens
        yield WorkSpec(
            key=f"propose-{slot:05d}-{attempt:02d}",
            kind=kind,
            function=function,
            arguments=arguments,
            slot=slot,
            attempt=attempt,
            proposer="llm" if broken is not None else proposer,
            label=label,
        )


def _to_repair(slot: int, attempt: int, state: RunState, config: Config) -> ExperimentState | None:
    """The design of the last attempt, if its training failed and language models may repair it once more.

    One that was stopped because it is behind has nothing to repair: another design takes its place.
    """
    if attempt == 0:
        return None
    places = {e.attempt: e for e in state.experiments.values() if e.slot == slot and e.attempt is not None}
    last = places.get(attempt - 1)
    if last is None or last.proposer != "llm" or not last.gate.passed or last.failed_stage != "training":
        return None
    if last.failed_cause == "behind":
        return None
    repairs = 0
    while (earlier := places.get(attempt - 1 - repairs)) is not None and earlier.operator == "debug":
        repairs += 1
    return last if repairs < config.agents.debug_attempts else None


def designs_wanted(state: RunState, config: Config, capacity: int) -> int:
    """How many further agent jobs for designs are worth starting, so that trainings never wait for one, and no more.

    By Genesys's ratio of designers to verifiers, from measured rates: while each of n trainers takes T seconds a
    design and a proposal takes P seconds per admitted design, n * P / T proposals at once keep them busy. None are
    started while a design waits for every trainer.
    """
    trainers = max(1, min(config.executor.train.max_jobs or capacity, capacity))
    waiting = sum(
        1 for spec in _trainings(state, config) if spec.key not in state.outcomes and spec.key not in state.busy
    )
    under_way = sum(1 for busy in state.busy.values() if busy.work.get("proposer") == "llm")
    if waiting >= trainers:
        return 0
    tally = state.tallies.get("llm")
    if tally is None or not tally.admitted or not tally.seconds or not state.train_seconds:
        return trainers - under_way
    rate = (tally.seconds / tally.admitted) / max(fmean(state.train_seconds) * len(config.scale.seeds), 1e-9)
    return max(1, math.ceil(trainers * rate)) - under_way
