"""Records with plausible numbers for the tests of the search; every field can be given another value."""

from __future__ import annotations

from typing import Any

from asiarch_hpc.records import BaselineStats, Evaluation, GateReport, Judgement, Score, TaskScore

REFERENCE_ID, UPPER_ID = "de17a0e7" * 2, "9a7edde1" * 2


def evaluation(experiment: str = "c" * 16, trial: str = "explore-s0", **changes: Any) -> Evaluation:
    values: dict[str, Any] = {
        "experiment": experiment,
        "trial": trial,
        "attempt": "0",
        "weights_sha256": "0" * 64,
        "loss": 4.5,
        "bits_per_byte": 2.0,
        "untrained_loss": 7.6,
        "untrained_bits_per_byte": 3.4,
        "uniform_loss": 7.62,
        "benchmark": 0.3,
        "tasks": {
            "recall": TaskScore(accuracy=0.3, stderr=0.0, chance=0.1, questions=100),
            "text_choice": TaskScore(accuracy=0.3, stderr=0.0, chance=0.25, questions=100),
        },
    }
    return Evaluation(**{**values, **changes})


def gate_report(**changes: Any) -> GateReport:
    values: dict[str, Any] = {
        "passed": True,
        "parameters": 150_000,
        "flops_per_token": 3e5,
        "modelled_seconds_per_token": 2e-6,
        "time_exponent": 1.05,
    }
    return GateReport(**{**values, **changes})


def stats(experiment: str = REFERENCE_ID, name: str = "delta_net", **changes: Any) -> BaselineStats:
    values: dict[str, Any] = {
        "experiment": experiment,
        "name": name,
        "seeds": 3,
        "loss_mean": 4.5,
        "loss_sd": 0.01,
        "benchmark_mean": 0.3,
        "benchmark_sd": 0.01,
        "bits_per_byte_mean": 2.0,
        "bits_per_byte_sd": 0.01,
        "flops_per_token": 3e5,
        "modelled_seconds_per_token": 2e-6,
        "time_exponent": 1.05,
        "parameters": 150_000,
    }
    return BaselineStats(**{**values, **changes})


BASELINES = (stats(), stats(UPPER_ID, "gated_delta_net", loss_mean=4.45))


def judgement(raw: float = 5.0) -> Judgement:
    return Judgement(raw=raw, source="rule", version="rule/1")


def scored(experiment: str, fitness: float, slot: int | None = None, **changes: Any) -> Score:
    values: dict[str, Any] = {
        "experiment": experiment,
        "fitness": fitness,
        "fitness_sd": 0.01,
        "loss_part": 0.5,
        "benchmark_part": 0.5,
        "judge_part": 0.5,
        "loss": 4.5,
        "bits_per_byte": 2.0,
        "benchmark": 0.3,
        "judgement": judgement(),
        "formula": "asi_arch/1",
        "slot": slot,
    }
    return Score(**{**values, **changes})


def baseline_scores() -> tuple[Score, ...]:
    return scored(REFERENCE_ID, 0.48), scored(UPPER_ID, 0.55)
