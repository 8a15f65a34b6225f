"""A language model's verdict on whether a proposal repeats one of its nearest neighbours (ASI-Arch section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from asiarch_hpc.agents.casefile import CaseFile
from asiarch_hpc.agents.draft import Draft
from asiarch_hpc.agents.llm import LanguageModels
from asiarch_hpc.agents.prompt import render
from asiarch_hpc.agents.replies import Verdict
from asiarch_hpc.agents.reply import Reply, ReplyError


def verdict(models: LanguageModels, draft: Draft, neighbours: Sequence[tuple[CaseFile, float]]) -> Verdict:
    """The verdict on a draft beside its neighbours, each with the likeness of the texts.

    Raises:
        AgentError, ServiceError: as `LanguageModels.ask`.
    """

    def check(found: Verdict) -> None:
        if found.duplicate and not 1 <= found.of <= len(neighbours):
            raise ReplyError(
                f"`of` is {found.of}; a duplicate needs the number of a listed design, 1 to {len(neighbours)}"
            )

    reply = Reply("verdict", Verdict, check=check)
    prompt = render("novelty", draft=draft, neighbours=neighbours, format=reply.format(models.config.reply))
    return models.ask("novelty", prompt, reply)
