"""The Engineer's repair of a design whose training failed or was stopped (ASI-Arch section 3.3 and B.3)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from asiarch_hpc.agents.casefile import CaseFile, thinned
from asiarch_hpc.agents.draft import Draft, check_extent, written_form, written_source
from asiarch_hpc.agents.llm import LanguageModels
from asiarch_hpc.agents.prompt import render
from asiarch_hpc.agents.replies import Repair
from asiarch_hpc.agents.reply import Reply, ReplyError
from asiarch_hpc.agents.researcher import Rules
from asiarch_hpc.designs.hashing import design_id

ERROR_LINES = 60
REPAIRED = "_repaired"  # behind the name of a design whose training once failed
# Frames of the training program and of libraries say nothing about the design; its own file is named by its id.
_FRAME = re.compile(r'^\s*File "([^"]*)", line \d+')
_OWN = re.compile(r"asiarch_design_[0-9a-f]+|<design|architecture\.py")


def repair(
    models: LanguageModels,
    case: CaseFile,
    *,
    cause: str,
    error: str,
    rules: Rules,
    known: AbstractSet[str],
    tried: Sequence[str] = (),
    broken: Draft | None = None,
    report: str = "",
) -> tuple[Draft, str]:
    """A repaired design with the same idea, and what was changed.

    Args:
        error: the training's error, whole; it is filtered here.
        tried: what earlier repairs of this design changed.
        broken: the last repair, where the gate refused it, with its `report`.

    Raises:
        AgentError, ServiceError: as `LanguageModels.ask`.
    """
    base = case.source if broken is None else broken.source

    def check(found: Repair) -> None:
        source = written_source(found.source, found.diff, base)
        check_extent(found.diagnosis + found.change, source)
        identity = design_id(source)
        if identity == case.id or identity in known:
            raise ReplyError("this source is, up to formatting, the one that failed, or another design of the search")

    reply = Reply("repair", Repair, code={"source": "python", "diff": "diff"}, check=check)
    prompt = render(
        "debugger",
        case=replace(case, curve=thinned(case.curve)),
        cause=cause,
        error=essential(error),
        tried=tried,
        report=report,
        source=base,
        form=case.form,
        rules=rules,
        format=reply.format(models.config.reply),
    )
    found = models.ask("debugger", prompt, reply)
    source = written_source(found.source, found.diff, base)
    change = f"{found.diagnosis.strip()} {found.change.strip()}"
    name = case.name if case.name.endswith(REPAIRED) else f"{case.name}{REPAIRED}"
    motivation = f"{case.motivation.strip()}\n\nRepaired after its training ended with {cause}: {change}"
    return Draft(name=name, motivation=motivation, source=source, form=written_form(source)), change


def essential(error: str) -> str:
    """An error without what does not help: foreign frames with their source lines, repetitions, all but the end."""
    kept: list[str] = []
    skipping = False
    for line in error.splitlines():
        frame = _FRAME.match(line)
        if frame:
            skipping = not _OWN.search(frame[1])
        elif skipping and not line.startswith("    "):
            skipping = False
        if not skipping and line.strip() and (not kept or kept[-1] != line):
            kept.append(line.rstrip())
    return "\n".join(kept[-ERROR_LINES:])
