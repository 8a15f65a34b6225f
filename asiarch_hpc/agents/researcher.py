"""The Researcher: one agent for motivation and code (ASI-Arch section 3.2).

It reads the parent in full and four references as summaries that are made afresh for this proposal, and answers with a
design. A design that is known already goes to a second prompt, which must leave the exhausted direction; one that the
gate refuses comes back with the gate's report.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from asiarch_hpc.agents.casefile import CaseFile, Standard, thinned
from asiarch_hpc.agents.draft import Draft, check_extent, written_form, written_source
from asiarch_hpc.agents.llm import LanguageModels
from asiarch_hpc.agents.operations import operations
from asiarch_hpc.agents.prompt import Prompt, render
from asiarch_hpc.agents.recombine import tree_name
from asiarch_hpc.agents.replies import ProgramReply, Summary
from asiarch_hpc.agents.reply import Reply, ReplyError
from asiarch_hpc.agents.tree_edit import TreeEdits
from asiarch_hpc.config import GateConfig
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.hashing import design_id
from asiarch_hpc.designs.library import library
from asiarch_hpc.designs.tree import UnitTree
from asiarch_hpc.errors import DesignError

# What a prompt leaves out when it is too long for the model, first things first. The parent's source, the contract and
# the baselines always stay.
TRIMMING = (
    "the third paper", "the fourth reference", "the second paper", "the third reference", "the parent's curve",
    "the second reference", "the first paper", "the first reference", "the parent's analysis",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The gate's limits, as prompts state them."""

    attention: bool
    slow_multiple: float
    memory_multiple: float
    parameter_tolerance: float
    operations: str

    @classmethod
    def of(cls, gate: GateConfig, *, attention: bool) -> Rules:
        return cls(
            attention=attention,
            slow_multiple=gate.slow_multiple,
            memory_multiple=gate.memory_multiple,
            parameter_tolerance=gate.parameter_tolerance,
            operations=operations(),
        )


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Why the last proposal was refused as known: the reason, and names and motivations of what it repeats."""

    reason: str
    motivations: Sequence[tuple[str, str]]


@dataclass(kw_only=True)
class Researcher:
    """One proposal's author. `known` are ids of designs of the run; `tree` is the parent's, for edits."""

    models: LanguageModels
    parent: CaseFile
    references: Sequence[CaseFile]
    standard: Standard
    rules: Rules
    known: AbstractSet[str]
    taken: AbstractSet[str] = frozenset()  # names that would lend a design what others earned
    tree: UnitTree | None = None
    max_height: int = 8
    rng: random.Random = field(default_factory=random.Random)
    _summaries: dict[str, str] = field(default_factory=dict)

    def propose(self, repeated: Repeated | None = None) -> Draft:
        """A new design; after a repetition, one that leaves the direction.

        Raises:
            AgentError, ServiceError: as `LanguageModels.ask`.
        """
        if self.models.config.design == "edit" and self.tree is not None:
            return self._edit(self.tree, "" if repeated is None else repeated.reason)
        self._summarise()
        template = "researcher" if repeated is None else "researcher_again"
        reply = self._reply()
        prompt = self.models.fitted(
            "researcher", lambda left_out: self._prompt(template, left_out, repeated, reply), TRIMMING
        )
        return self._draft(self.models.ask("researcher", prompt, reply))

    def repair(self, draft: Draft, report: str) -> Draft:
        """The draft after the gate's report."""
        if draft.tree is not None and self.tree is not None:
            return self._edit(self.tree, f"{draft.motivation.splitlines()[-1]}\n{report}")
        reply = self._reply(base=draft.source, allowed=draft.id)
        prompt = render(
            "researcher_repair",
            draft=draft,
            report=report,
            form=draft.form,
            rules=self.rules,
            format=reply.format(self.models.config.reply),
        )
        return self._draft(self.models.ask("researcher", prompt, reply), base=draft.source)

    def references_told(self) -> list[tuple[str, str, str]]:
        """Name, result and summary of each reference; edits of trees are made without summaries."""
        return [(case.name, _result(case), self._summaries.get(case.id, "")) for case in self.references]

    def _summarise(self) -> None:
        reply = Reply("summary", Summary)
        for case in (self.parent, *self.references):
            if case.id not in self._summaries:
                prompt = render("summarizer", case=case, format=reply.format(self.models.config.reply))
                self._summaries[case.id] = self.models.ask("summarizer", prompt, reply).summary.strip()

    def _prompt(self, template: str, left_out: int, repeated: Repeated | None, reply: Reply[Any]) -> Prompt:
        gone = set(TRIMMING[:left_out])
        parent = replace(self.parent, curve=() if "the parent's curve" in gone else thinned(self.parent.curve))
        if "the parent's analysis" in gone:
            parent = replace(parent, analysis=None)
        lessons = _kept(self.parent.lessons, gone, "paper")
        return render(
            template,
            parent=parent,
            parent_summary=self._summaries[self.parent.id],
            lessons=lessons,
            references=_kept(self.references_told(), gone, "reference"),
            standard=self.standard,
            rules=self.rules,
            form=self.parent.form,
            repeated=repeated,
            format=reply.format(self.models.config.reply),
        )

    def _reply(self, base: str | None = None, allowed: str = "") -> Reply[ProgramReply]:
        text = self.parent.source if base is None else base

        def check(found: ProgramReply) -> None:
            source = written_source(found.source, found.diff, text)
            check_extent(found.motivation, source)
            if found.name in self.taken:
                raise ReplyError(f"the name {found.name} is that of another design; give it one of its own")
            identity = design_id(source)
            if identity in self.known or identity == self.parent.id:
                raise ReplyError("this source is, up to formatting, that of a design that exists in this search")
            if identity == allowed:
                raise ReplyError("the source was not changed")

        return Reply("design", ProgramReply, code={"source": "python", "diff": "diff"}, check=check)

    def _draft(self, reply: ProgramReply, base: str | None = None) -> Draft:
        source = written_source(reply.source, reply.diff, self.parent.source if base is None else base)
        return Draft(name=reply.name, motivation=reply.motivation.strip(), source=source, form=written_form(source))

    def _edit(self, tree: UnitTree, feedback: str) -> Draft:
        edits = TreeEdits.of(tree, self.max_height)
        state = self.rng.getstate()

        def made(found: dict[str, Any]) -> Draft:
            """The edited design; the same reply draws the same filling."""
            self.rng.setstate(state)
            root, change = edits.apply(found, self.rng)
            draft = UnitTree("draft", root)
            try:
                identity = design_id(compose(draft))
            except DesignError as error:
                raise ReplyError(str(error)) from error
            if identity in self.known or identity == self.parent.id:
                raise ReplyError("the edit gives a design that exists in this search; choose another one")
            named = UnitTree(tree_name(root, identity, library()), root)
            text = f"{found['motivation'].strip()}\n\n{change.text}"
            return Draft(name=named.name, motivation=text, source=compose(named), form="tree", tree=named)

        def check(found: dict[str, Any]) -> None:
            made(found)

        reply = Reply[dict[str, Any]]("edit", dict, check=check, schema=edits.schema())
        prompt = self.models.fitted(
            "researcher", lambda left_out: self._edit_prompt(edits, left_out, feedback, reply), TRIMMING
        )
        draft = made(self.models.ask("researcher", prompt, reply))
        return draft

    def _edit_prompt(self, edits: TreeEdits, left_out: int, feedback: str, reply: Reply[Any]) -> Prompt:
        gone = set(TRIMMING[:left_out])
        mode = self.models.config.reply
        return render(
            "researcher_edit",
            parent=self.parent,
            lessons=_kept(self.parent.lessons, gone, "paper"),
            references=_kept(self.references_told(), gone, "reference"),
            standard=self.standard,
            tree=edits.listing(),
            units=edits.units(),
            feedback=feedback,
            format="Answer with one JSON object that fits the schema you are held to."
            if mode == "schema"
            else reply.format(mode),
        )


def _kept(items: Sequence[Any], gone: AbstractSet[str], what: str) -> list[Any]:
    """The items whose place was not left out."""
    places = ("first", "second", "third", "fourth")
    return [item for place, item in zip(places, items, strict=False) if f"the {place} {what}" not in gone]


def _result(case: CaseFile) -> str:
    if case.loss is None or case.benchmark is None:
        return "not trained"
    fitness = f"fitness {case.score.fitness:.3f}, " if case.score else ""
    return f"{fitness}held-out loss {case.loss:.4f}, mean accuracy {case.benchmark:.3f}"
