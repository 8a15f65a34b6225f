"""Promotion to a larger scale: who goes on, in which order, and why."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_examples import BASELINES, scored, stats

from asiarch_hpc.config import PromotionConfig
from asiarch_hpc.search.promotion import Contender, Decision, decide

REFERENCE = BASELINES[0]  # loss 4.5, benchmark 0.3, both with a spread of 0.01 over three seeds


def contender(experiment: str = "c", fitness: float = 0.6, **changes: Any) -> Contender:
    own = {name: changes.pop(name) for name in ("runs", "parameters", "seconds_per_token") if name in changes}
    score = scored(experiment, fitness, 0, **{"loss": 4.4, "benchmark": 0.35, **changes})
    return Contender(score=score, **{"runs": 1, "parameters": 150_000, "seconds_per_token": 2e-6, **own})


def decisions(*contenders: Contender, **rule: Any) -> tuple[Decision, ...]:
    return decide(contenders, reference=REFERENCE, baselines=BASELINES, rule=PromotionConfig(**rule))


@pytest.mark.parametrize(
    ("changes", "rule", "reason"),
    [
        ({"loss": 4.5}, {}, r"its loss is not below delta_net's; loss \+0\.0000"),
        ({"loss": 4.49}, {"min_noise_multiples": 1.0}, r"not below delta_net's by 1 standard deviations"),
        ({"benchmark": 0.3}, {}, r"its benchmark is not above delta_net's; "),
        ({"benchmark": 0.28}, {"benchmark_slack": 1.0}, r"not above delta_net's less 1 standard deviations"),
        ({"parameters": 190_000}, {"beat_baseline": False}, r"too large: at most 1\.25 times the parameters"),
        ({"seconds_per_token": 5e-6}, {"beat_baseline": False}, r"too costly: at most 2 times .* 2\.50 times its time"),
        ({"seconds_per_token": math.nan}, {}, r"too costly"),
        ({"loss": math.nan}, {"beat_baseline": False}, r"no number"),
        ({"fitness": math.nan}, {"by": "loss", "beat_baseline": False}, r"no number"),
        ({"discarded": "leak: loss 2"}, {"beat_baseline": False}, r"discarded: leak: loss 2"),
    ],
)
def test_refusals_say_why(changes: dict[str, Any], rule: dict[str, Any], reason: str) -> None:
    (found,) = decisions(contender(**changes), **rule)
    assert not found.promoted
    assert found.rank is None
    assert re.search(reason, found.reason), found.reason


def test_noise_shrinks_with_the_runs_of_a_design() -> None:
    close = {"loss": 4.485, "benchmark": 0.31}
    assert not decisions(contender(**close), min_noise_multiples=1.5)[0].promoted
    assert decisions(contender(runs=3, **close), min_noise_multiples=1.5)[0].promoted


def test_the_best_go_on_by_fitness_or_by_loss() -> None:
    field = (contender("a", 0.6, loss=4.2), contender("b", 0.8, loss=4.4), contender("d", 0.7, loss=4.3))
    by_fitness = decisions(*field, top=2)
    assert [(d.experiment, d.promoted, d.rank) for d in by_fitness] == [("b", True, 1), ("d", True, 2), ("a", False, 3)]
    assert "only the first 2 go on" in by_fitness[2].reason
    assert [d.experiment for d in decisions(*field, top=1, by="loss") if d.promoted] == ["a"]
    assert all(d.promoted for d in decisions(*field))


def test_without_a_spread_the_means_decide() -> None:
    still = replace(REFERENCE, loss_sd=0.0, benchmark_sd=0.0)
    (found,) = decide([contender()], reference=still, baselines=[still], rule=PromotionConfig(min_noise_multiples=2.0))
    assert found.promoted
    assert "no spread" in found.reason


FIELDS = st.lists(
    st.builds(
        dict,
        fitness=st.floats(0, 1) | st.just(math.nan),
        loss=st.floats(4.3, 4.7),
        benchmark=st.floats(0.2, 0.4),
        parameters=st.integers(100_000, 250_000),
        discarded=st.sampled_from([None, None, None, "leak"]),
    ),
    max_size=8,
)
RULES = st.builds(
    PromotionConfig,
    top=st.integers(0, 4),
    by=st.sampled_from(["fitness", "loss"]),
    beat_baseline=st.booleans(),
    min_noise_multiples=st.floats(0, 3),
    max_parameters_ratio=st.floats(0.8, 1.6),
)


@given(field=FIELDS, rule=RULES, seed=st.integers(0, 100))
def test_decisions(field: list[dict[str, Any]], rule: PromotionConfig, seed: int) -> None:
    contenders = [contender(f"{i:02d}", **values) for i, values in enumerate(field)]
    found = decide(contenders, reference=REFERENCE, baselines=BASELINES, rule=rule)
    shuffled = random.Random(seed).sample(contenders, len(contenders))
    assert decide(shuffled, reference=REFERENCE, baselines=BASELINES, rule=rule) == found
    assert sorted(d.experiment for d in found) == [c.score.experiment for c in contenders]
    promoted, by_id = [d for d in found if d.promoted], {c.score.experiment: c for c in contenders}
    assert not rule.top or len(promoted) <= rule.top
    ranks = [d.rank for d in found if d.rank is not None]
    assert ranks == list(range(1, len(ranks) + 1))
    assert len(promoted) == (min(rule.top, len(ranks)) if rule.top else len(ranks))
    for decision in found:
        score = by_id[decision.experiment].score
        sound = score.discarded is None and math.isfinite(score.fitness)
        beats = score.loss < REFERENCE.loss_mean and score.benchmark > REFERENCE.benchmark_mean
        assert decision.reason
        if decision.rank is not None:
            assert sound
            assert beats or not rule.beat_baseline
            assert by_id[decision.experiment].parameters <= rule.max_parameters_ratio * REFERENCE.parameters
    merits = [
        by_id[d.experiment].score.loss if rule.by == "loss" else -by_id[d.experiment].score.fitness for d in found
    ]
    assert merits[: len(ranks)] == sorted(merits[: len(ranks)])


@given(field=FIELDS, rule=RULES)
def test_a_stricter_rule_promotes_no_one_else(field: list[dict[str, Any]], rule: PromotionConfig) -> None:
    contenders = [contender(f"{i:02d}", **values) for i, values in enumerate(field)]

    def qualified(chosen: PromotionConfig) -> set[str]:
        found = decide(contenders, reference=REFERENCE, baselines=BASELINES, rule=chosen)
        return {d.experiment for d in found if d.rank is not None}

    stricter = replace(rule, beat_baseline=True, min_noise_multiples=rule.min_noise_multiples + 1)
    assert qualified(stricter) <= qualified(rule)


def test_the_reference_itself_never_qualifies_by_its_own_mean() -> None:
    own = contender("r", loss=stats().loss_mean, benchmark=stats().benchmark_mean)
    assert not decisions(own)[0].promoted
