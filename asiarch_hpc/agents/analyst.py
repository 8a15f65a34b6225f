"""The Analyst: five parts on one experiment, with parent and siblings as an ablation (ASI-Arch section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from asiarch_hpc.agents.casefile import CaseFile, Standard, thinned
from asiarch_hpc.agents.draft import difference
from asiarch_hpc.agents.llm import LanguageModels
from asiarch_hpc.agents.prompt import Prompt, render
from asiarch_hpc.agents.replies import AnalysisReply
from asiarch_hpc.agents.reply import Reply
from asiarch_hpc.records import Analysis

TRIMMING = (
    "the third sibling",
    "the second sibling",
    "the first sibling",
    "the difference from the parent",
    "the parent",
)


def analyse(
    models: LanguageModels,
    case: CaseFile,
    parent: CaseFile | None,
    siblings: Sequence[CaseFile],
    standard: Standard,
) -> Analysis:
    """The analysis of one design.

    Raises:
        AgentError, ServiceError: as `LanguageModels.ask`.
    """
    reply = Reply("analysis", AnalysisReply)

    def prompt(left_out: int) -> Prompt:
        gone = set(TRIMMING[:left_out])
        places = ("first", "second", "third")
        shown: list[Any] = [s for p, s in zip(places, siblings, strict=False) if f"the {p} sibling" not in gone]
        base = None if parent is None or "the parent" in gone else replace(parent, curve=thinned(parent.curve))
        changed = "" if base is None else difference(base.source, case.source)
        return render(
            "analyst",
            case=replace(case, curve=thinned(case.curve)),
            parent=base,
            siblings=shown,
            standard=standard,
            difference="(left out)" if "the difference from the parent" in gone else changed,
            format=reply.format(models.config.reply),
        )

    found = models.ask("analyst", models.fitted("analyst", prompt, TRIMMING), reply)
    return Analysis(**found.model_dump())
