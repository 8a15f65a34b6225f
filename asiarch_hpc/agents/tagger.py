"""Which components a design changed, and where each idea comes from (ASI-Arch sections 5.2 and 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

from asiarch_hpc.agents.casefile import CaseFile
from asiarch_hpc.agents.components import COMPONENTS
from asiarch_hpc.agents.draft import Draft, difference
from asiarch_hpc.agents.llm import LanguageModels
from asiarch_hpc.agents.prompt import render
from asiarch_hpc.agents.replies import Tag, Tags
from asiarch_hpc.agents.reply import Reply, ReplyError


def tag(
    models: LanguageModels, draft: Draft, parent: CaseFile, references: Sequence[tuple[str, str, str]]
) -> list[Tag]:
    """The changes of a design, each in one of `COMPONENTS`.

    Raises:
        AgentError, ServiceError: as `LanguageModels.ask`.
    """

    def check(found: Tags) -> None:
        for item in found.changes:
            if item.component.strip().lower() not in COMPONENTS:
                raise ReplyError(f"{item.component!r} is no category; expected one of {', '.join(COMPONENTS)}")

    reply = Reply("tags", Tags, check=check)
    prompt = render(
        "tagger",
        draft=draft,
        parent=parent,
        lessons=parent.lessons,
        references=references,
        difference=difference(parent.source, draft.source),
        components=COMPONENTS,
        format=reply.format(models.config.reply),
    )
    found = models.ask("tagger", prompt, reply).changes
    return [item.model_copy(update={"component": item.component.strip().lower()}) for item in found]
