"""The judge: sub-scores by a rubric, several times; the weighted sum and the median are made here (truth rule 6).

The reference baseline stands at 5 of 10 and the upper one at 10 (ASI-Arch section 3.3), with their real numbers of this
run. A judge that fails gives nothing: a missing grade is asked for again, never replaced by a middling one.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace

from asiarch_hpc.agents.casefile import CaseFile, Standard
from asiarch_hpc.agents.draft import bare
from asiarch_hpc.agents.llm import LanguageModels
from asiarch_hpc.agents.prompt import render
from asiarch_hpc.agents.replies import Grades
from asiarch_hpc.agents.reply import Reply
from asiarch_hpc.records import Judgement

VERSION = "llm/1"
PARTS = ("novelty", "complexity", "efficiency", "results")


def judge(
    models: LanguageModels,
    case: CaseFile,
    parent: CaseFile | None,
    standard: Standard,
    *,
    weights: Mapping[str, float],
    samples: int,
) -> Judgement:
    """The grade of one design.

    Raises:
        AgentError, ServiceError: one of the samples was not to be had.
    """
    reply = Reply("grades", Grades)
    anchors = [stats.name for stats in standard.baselines]
    prompt = render(
        "judge",
        case=replace(case, source=bare(case.source)),
        parent=parent,
        standard=standard,
        anchors=[anchors[0], anchors[-1]],
        format=reply.format(models.config.reply),
    )
    return judgement([models.ask("judge", prompt, reply) for _ in range(samples)], weights)


def judgement(grades: list[Grades], weights: Mapping[str, float]) -> Judgement:
    """Median of the weighted sums, with their spread."""
    assert grades
    sums = [sum(weights[part] * getattr(grade, part) for part in PARTS) for grade in grades]
    return Judgement(
        raw=statistics.median(sums),
        source="llm",
        version=VERSION,
        reasons=tuple(grade.reasons for grade in grades),
        samples=tuple(round(value, 6) for value in sums),
        spread=round(max(sums) - min(sums), 6),
        parts={part: statistics.median(getattr(grade, part) for grade in grades) for part in PARTS},
    )
