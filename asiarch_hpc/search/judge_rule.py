"""The judge while no language model judges: a fixed rule on measured speed and complexity.

The grade starts at the reference's (5) and moves by
    - `judge_speed` points for each halving (gain) or doubling (loss) of the modelled time per token,
    - `judge_growth` points lost per unit by which the growth of time with length exceeds the limit,
    - `judge_parameters` points lost for each doubling of the parameters (gained for each halving),
clipped to 1..10. All inputs are counted, not clocked, so the same design always gets the same grade. The rule
says nothing about originality, and a search that uses it is marked by `source="rule"`.
"""

from __future__ import annotations

import math

from asiarch_hpc.config import FitnessConfig
from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.records import BaselineStats, GateReport, Judgement
from asiarch_hpc.search.baselines import checked_report
from asiarch_hpc.search.fitness import HIGHEST_GRADE, LOWEST_GRADE

VERSION = "rule/1"


def judge(name: str, report: GateReport, reference: BaselineStats, config: FitnessConfig) -> Judgement:
    """Grades one design against the reference baseline, which itself gets `judge_reference`.

    Raises:
        EvaluationError: the gate was not passed, or a measurement of the design or the reference is missing.
    """
    checked_report(report, name)
    for field in ("modelled_seconds_per_token", "time_exponent", "parameters"):
        value = float(getattr(reference, field))
        if not (math.isfinite(value) and value > 0.0):
            raise EvaluationError(
                f"baseline {reference.name}: {field}={value}, expected a positive number; run its gate again"
            )
    grades = (
        _speed(report, reference, config),
        _growth(report, reference, config),
        _parameters(report, reference, config),
    )
    raw = config.judge_reference + math.fsum(points for points, _ in grades)
    clipped = max(LOWEST_GRADE, min(HIGHEST_GRADE, raw))
    reasons = [f"{reference.name} is graded {config.judge_reference:g}", *(reason for _, reason in grades)]
    if clipped != raw:
        reasons.append(f"the sum {raw:.2f} lies outside the scale and counts as {clipped:g}")
    return Judgement(raw=clipped, source="rule", version=VERSION, reasons=tuple(reasons))


def _speed(report: GateReport, reference: BaselineStats, config: FitnessConfig) -> tuple[float, str]:
    ratio = report.modelled_seconds_per_token / reference.modelled_seconds_per_token
    points = -config.judge_speed * math.log2(ratio)
    if ratio == 1.0:
        return 0.0, f"modelled time per token equals {reference.name}'s"
    word = "less" if ratio < 1.0 else "more"
    return points, f"modelled time per token is {ratio:.3g} times {reference.name}'s, {word} than it: {points:+.2f}"


def _growth(report: GateReport, reference: BaselineStats, config: FitnessConfig) -> tuple[float, str]:
    limit = max(config.judge_growth_limit, reference.time_exponent)
    excess = report.time_exponent - limit
    grown = f"time grows as length^{report.time_exponent:.2f}"
    if not excess > 0.0:
        return 0.0, f"{grown}, within the limit {limit:.2f}"
    points = -config.judge_growth * excess
    return points, f"{grown}, above the limit {limit:.2f}: {points:+.2f}"


def _parameters(report: GateReport, reference: BaselineStats, config: FitnessConfig) -> tuple[float, str]:
    ratio = report.parameters / reference.parameters
    points = -config.judge_parameters * math.log2(ratio)
    if ratio == 1.0:
        return 0.0, f"{report.parameters:,} parameters, as many as {reference.name}"
    return (
        points,
        f"{report.parameters:,} parameters against {reference.parameters:,} ({ratio:.3g} times): {points:+.2f}",
    )
