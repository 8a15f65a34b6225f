"""A new entry of the cognition base from a paper (ASI-Arch appendix B.5).

What a model says of a paper is held to what every entry is held to, and to the paper: an arXiv number or a title that
does not stand there goes back to the model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from asiarch_hpc.agents.llm import LanguageModels
from asiarch_hpc.agents.prompt import Prompt, render
from asiarch_hpc.agents.reply import Reply, ReplyError
from asiarch_hpc.errors import RecordError
from asiarch_hpc.knowledge.cognition import (
    COGNITIONS,
    CONCEPTS,
    TOPICS,
    TRIGGERS,
    Background,
    Cognition,
    Entry,
    Paper,
)
from asiarch_hpc.knowledge.papers import shortened
from asiarch_hpc.knowledge.words import stems
from asiarch_hpc.knowledge.writing import entry_text

CHARACTERS_PER_TOKEN = 4  # of English; where a paper has more tokens, less of it is shown
SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.12)  # of the paper's characters that are tried in turn
HEAD = 4000  # characters of a paper among which its title and number stand
_ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_STAMP = re.compile(r"arXiv:\s*(\d{4}\.\d{4,5})v\d+\s*\[[a-z-]+(?:\.[A-Za-z-]+)?\]")  # a citation has no [cs.LG]

Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class PaperPart(_Part):
    """The paper."""

    id: Text = Field(description="its arXiv number, such as 2406.06484; without one a short-name-in-small-letters")
    title: Text = Field(description="its title as printed")
    authors: Text = Field(description="family names of up to five authors, then `et al.`")
    year: int = Field(ge=1940, le=2100, description="year of its first version")


class ConceptPart(_Part):
    """A term."""

    term: Text = Field(description="a term that the paper introduces or leans on")
    meaning: Text = Field(description="one sentence or formula that explains it to somebody who never met it")


class BackgroundPart(_Part):
    """What was before the paper."""

    context: Text = Field(description="what was usual when it was written and how that works, 1 to 3 sentences")
    limitations: Text = Field(description="what that could not do or cost too much, 1 to 3 sentences of symptoms")
    concepts: list[ConceptPart] = Field(
        min_length=CONCEPTS[0], max_length=CONCEPTS[1], description=f"{CONCEPTS[0]} to {CONCEPTS[1]} terms"
    )


class CognitionPart(_Part):
    """One lesson."""

    insight: Text = Field(description="the lesson as an instruction in one sentence: what to do, and what it buys")
    topic: str = Field(description="one of the listed topics", json_schema_extra={"enum": list(TOPICS)})
    triggers: list[Text] = Field(
        min_length=TRIGGERS[0],
        max_length=TRIGGERS[1],
        description=f"{TRIGGERS[0]} to {TRIGGERS[1]} symptoms, each 5 to 15 words, by which somebody who studies "
        "losses, accuracies, curves, costs and code of an experiment would notice that this lesson helps; no names of "
        "methods",
    )
    algorithm: Text = Field(description="what is computed and in which order, 2 to 4 sentences")
    mechanism: Text = Field(description="why it works, 1 to 3 sentences")
    formulas: Text = Field(description="the formulas that define it, plain text, one a line, shapes where they help")
    properties: Text = Field(description="growth of time and memory with length and width, state, parallel form")
    implementation: Text = Field(description="what it replaces, where it goes, initial values, sizes, what to norm")
    conditions: Text = Field(description="when to use it, when not, what breaks it")
    outcomes: Text = Field(description="which abilities gain or lose and what it costs, no percentages")


class EntryReply(_Part):
    """The whole entry."""

    paper: PaperPart = Field(description="what was read")
    background: BackgroundPart = Field(description="what was before")
    cognitions: list[CognitionPart] = Field(
        min_length=COGNITIONS[0],
        max_length=COGNITIONS[1],
        description=f"{COGNITIONS[0]} to {COGNITIONS[1]} lessons, the most important first",
    )


def extract(models: LanguageModels, text: str, *, identifier: str = "") -> tuple[Entry, str]:
    """The entry of a paper, and its text in YAML.

    Args:
        text: of the paper, as `read_paper` gives it.
        identifier: its arXiv number or short name where that is known; it is not asked for then.

    Raises:
        AgentError, ServiceError: as `LanguageModels.ask`.
    """
    identifier = identifier or known_identifier(text)

    def check(found: EntryReply) -> None:
        _grounded(found, text, identifier)
        try:
            entry_text(_entry(found, identifier))
        except RecordError as error:
            raise ReplyError(str(error)) from error

    reply = Reply("entry", EntryReply, check=check)
    prompt = _prompt(models, text, identifier, reply.format(models.config.reply))
    entry = _entry(models.ask("extractor", prompt, reply), identifier)
    return entry, entry_text(entry)


def known_identifier(text: str) -> str:
    """The arXiv number that is stamped onto a paper's first page; empty without."""
    found = _STAMP.search(text[:HEAD])
    return found[1] if found else ""


def _prompt(models: LanguageModels, text: str, identifier: str, form: str) -> Prompt:
    """The question with as much of the paper as there is room for."""
    room = models.config.context - models.config.roles.extractor.max_tokens
    whole = min(len(text), CHARACTERS_PER_TOKEN * max(0, room))

    def make(number: int) -> Prompt:
        return render(
            "extractor",
            paper=shortened(text, int(whole * SHARES[number])),
            identifier=identifier,
            fields=_outline(EntryReply),
            topics=TOPICS,
            format=form,
        )

    return models.fitted("extractor", make, [f"{1 - share:.0%} of the paper" for share in SHARES[1:]])


def _outline(kind: type[BaseModel], depth: int = 0) -> list[str]:
    """Lines that describe a reply's fields, those of its parts below them."""
    lines = []
    for name, info in kind.model_fields.items():
        lines.append(f"{'  ' * depth}- `{name}`: {info.description}")
        inner = next(iter(getattr(info.annotation, "__args__", ())), info.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            lines += _outline(inner, depth + 1)
    return lines


def _grounded(found: EntryReply, text: str, identifier: str) -> None:
    """Refuses a number or a title that the paper does not bear."""
    number = found.paper.id.strip()
    if not identifier and _ARXIV.fullmatch(number) and number not in text[:HEAD]:
        raise ReplyError(
            f"paper.id {number} does not stand at the beginning of the paper; give a short name in small letters and "
            "dashes, such as gated-mixer-2024"
        )
    title = set(stems(found.paper.title))
    if len(title & set(stems(text[:HEAD]))) < 0.7 * len(title):
        raise ReplyError(f"paper.title {found.paper.title!r} does not stand at the beginning of the paper; copy it")


def _entry(found: EntryReply, identifier: str) -> Entry:
    paper = found.paper
    background = found.background
    return Entry(
        paper=Paper(
            id=identifier or _short_name(paper.id),
            title=_line(paper.title),
            authors=_line(paper.authors),
            year=paper.year,
        ),
        background=Background(
            context=_line(background.context),
            limitations=_line(background.limitations),
            concepts={_line(concept.term): _line(concept.meaning) for concept in background.concepts},
        ),
        cognitions=tuple(_cognition(part) for part in found.cognitions),
    )


def _cognition(part: CognitionPart) -> Cognition:
    lines = {name: _line(getattr(part, name)) for name in CognitionPart.model_fields if name != "triggers"}
    lines["formulas"] = "\n".join(_line(line) for line in part.formulas.splitlines() if line.strip())
    return Cognition(triggers=_distinct(part.triggers), **lines)


def _distinct(triggers: Sequence[str]) -> tuple[str, ...]:
    """Without repetitions, which say nothing and would count."""
    return tuple({tuple(stems(text)): _line(text) for text in reversed(triggers)}.values())[::-1]


def _short_name(text: str) -> str:
    """A name as `IDENTIFIER` wants it, where the model's differs in form alone."""
    bare = re.sub(r"^arxiv:\s*|v\d+$", "", text.strip(), flags=re.IGNORECASE)
    return bare if _ARXIV.fullmatch(bare) else re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _line(text: str) -> str:
    """On one line, without letters that cannot be printed."""
    printable = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in unicodedata.normalize("NFC", text))
    return re.sub(r"\s+", " ", printable).strip()
