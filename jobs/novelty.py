"""Whether a proposal repeats a design of the run: by its code, by its behaviour, and in a language model's view."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from asiarch_hpc.agents.draft import Draft
from asiarch_hpc.agents.novelty import verdict
from asiarch_hpc.agents.replies import Verdict
from asiarch_hpc.agents.researcher import Repeated
from asiarch_hpc.config import NoveltyConfig
from asiarch_hpc.errors import AgentError, RecordError
from asiarch_hpc.gate.behaviour import behaviour_print
from asiarch_hpc.records import Json
from asiarch_hpc.search import code_print, novelty
from asiarch_hpc.store.experiments import read_experiment
from asiarch_hpc.store.files import read_json
from asiarch_hpc.store.layout import ExperimentLayout
from jobs.casefiles import CaseFiles
from jobs.team import Team
from jobs.workspace import Workspace

TOLD = 400  # characters of a motivation that is shown as an exhausted direction


@dataclass(frozen=True)
class Prints:
    """What a design is recognised by. `behaviour` is None where its code cannot be probed."""

    code: code_print.CodePrint
    behaviour: novelty.BehaviourPrint | None

    @classmethod
    def of(cls, source: str, space: Workspace, scratch: Path) -> Prints:
        behaviour = behaviour_print(source, config=space.config.gate, scratch=scratch)
        return cls(code_print.code_print(source), behaviour)

    def to_json(self) -> Json:
        return {"code": self.code.to_json(), "behaviour": self.behaviour}

    @classmethod
    def from_json(cls, data: Json) -> Prints:
        return cls(code_print.CodePrint.from_json(data["code"]), data["behaviour"])


@dataclass(frozen=True)
class Known:
    """A design of the run beside which a draft is looked at."""

    id: str
    name: str
    motivation: str
    prints: Prints | None


@dataclass(frozen=True)
class Look:
    """What was found: the nearest designs, and why the draft counts as known, if it does (`repeats`)."""

    nearest: tuple[tuple[Known, novelty.PairFinding], ...]
    verdict: Verdict | None
    prints: Prints
    repeats: str = ""

    def to_json(self) -> Json:
        return {
            "nearest": [
                {
                    "id": known.id,
                    "name": known.name,
                    "text": round(found.text, 4),
                    "code": round(found.code, 4),
                    "behaviour": None if found.distance is None else round(found.distance, 6),
                    "novelty": found.novelty,
                }
                for known, found in self.nearest
            ],
            "verdict": self.verdict.model_dump() if self.verdict else None,
        }

    def repeated(self) -> Repeated:
        """What the second researcher prompt is told."""
        told = [(k.name, k.motivation[:TOLD] + "…" * (len(k.motivation) > TOLD)) for k, _ in self.nearest]
        return Repeated(reason=self.repeats, motivations=told)


@dataclass
class Novelty:
    """Looks at drafts beside the designs `among`, those that the run had when the job began."""

    space: Workspace
    team: Team
    cases: CaseFiles
    among: AbstractSet[str]

    def look(self, draft: Draft, scratch: Path, *, ask: bool) -> Look:
        """Compares a draft with the run. `ask` lets a language model have its say on what the measures leave open.

        Raises:
            AgentError, ServiceError: no verdict was to be had.
        """
        known = list(self._known())
        prints = Prints.of(draft.source, self.space, scratch)
        findings = self._findings(draft, prints, known)
        places = novelty.closest(findings, self.space.config.agents.embedding.neighbours)
        nearest = tuple((known[place], findings[place]) for place in places)
        repeats, found = "", None
        for design, pair in nearest:
            # An edit of a tree changes an argument alone and is a new design all the same, unless it computes the same.
            if pair.novelty == "duplicate" and (draft.tree is None or _same(pair, self._limits)):
                repeats = f"it repeats {design.name}: {pair.reason}"
                break
        if not repeats and ask and self._limits.verdict and nearest:
            found = verdict(self.team.models, draft, [(self.cases.of(k.id), pair.text) for k, pair in nearest])
            if found.duplicate:
                repeats = f"it repeats {nearest[found.of - 1][0].name}: {found.reason}"
        return Look(nearest=nearest, verdict=found, prints=prints, repeats=repeats)

    @property
    def _limits(self) -> NoveltyConfig:
        return self.space.config.agents.novelty

    def _findings(self, draft: Draft, prints: Prints, known: list[Known]) -> list[novelty.PairFinding]:
        if not known:
            return []
        texts = self.team.embedder.likeness([draft.motivation], [k.motivation for k in known])[0]
        return [self._pair(prints, k.prints, text) for k, text in zip(known, texts, strict=True)]

    def _pair(self, prints: Prints, other: Prints | None, text: float) -> novelty.PairFinding:
        distance = None
        if other is not None and prints.behaviour is not None and other.behaviour is not None:
            distance = novelty.behaviour_distance(prints.behaviour, other.behaviour)
        code = code_print.likeness(prints.code, other.code) if other is not None else 0.0
        return novelty.combine(text=text, code=code, distance=distance, limits=self._limits)

    def _known(self) -> Iterator[Known]:
        for identifier in sorted(self.among):
            with contextlib.suppress(RecordError, OSError, KeyError, TypeError):
                yield self._read(self.space.layout.experiment(identifier))

    def _read(self, folder: ExperimentLayout) -> Known:
        record = read_experiment(folder)
        prints = Prints.from_json(read_json(folder.prints)) if folder.prints.exists() else None
        text = folder.motivation.read_text()
        return Known(record.id, record.name, text.partition("\n")[2].strip() or text, prints)


def refuse(look: Look) -> None:
    """Raises AgentError for a draft that is known."""
    if look.repeats:
        raise AgentError("duplicate", f"every proposal for this place was known already; the last: {look.repeats}")


def _same(pair: novelty.PairFinding, limits: NoveltyConfig) -> bool:
    return pair.distance is not None and pair.distance <= limits.behaviour_tolerance
