"""Papers as text for a language model: from PDF, LaTeX (a file or a source archive), Markdown, or plain text.

Headings become lines that begin with `#`, whatever the form, so that a paper too long for a model can be cut by
sections: how it begins and what it does are kept first, related work and appendices go first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asiarch_hpc.errors import ConfigError, RecordError
from asiarch_hpc.knowledge.latex import decode, latex_text, open_sources

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip", ".gz")
LONGEST = 64 << 20  # bytes of a file that is read
LEAST = 200  # characters of a section that are worth keeping
CUT = "\n[…]\n"

_NUMBERED = re.compile(r"^(\d{1,2}(?:\.\d{1,2}){0,2}|[A-H](?:\.\d{1,2}){0,2})[.:]?\s+([A-Z][^\n]{2,80})$")
_NAMED = re.compile(
    r"^(abstract|introduction|related works?|background|preliminaries|methods?|methodology|approach|model|experiments?"
    r"|results|evaluation|discussion|limitations|conclusions?|acknowledge?ments?|references|bibliography"
    r"|appendix|appendices)\s*[.:]?$",
    re.IGNORECASE,
)
_END = re.compile(r"(references|bibliography|appendix|appendices)\b", re.IGNORECASE)
_HEADING = re.compile(r"^(#{1,6})\s+(\S.*?)\s*#*\s*$")
_NUMBER = re.compile(r"^(?:\d+|[A-Z])(?:\.\d+)*[.:]?\s+")
# Kinds of sections by their titles, in the order in which they are kept. What fits none says what the paper does.
_DROPPED = re.compile(
    r"references|bibliography|acknowledge?ment|checklist|author contribution|funding|broader impact|ethic|reproducib",
    re.I,
)
_LATE = re.compile(r"related|prior work|appendi|supplement|proof|additional|further|hyper-?parameter|dataset", re.I)
_RESULTS = re.compile(r"experiment|result|evaluation|benchmark|ablation|discussion|conclusion|limitation|setup", re.I)
_BEGINNING = re.compile(r"abstract|introduction|overview", re.I)
_BEGINNING_SHARE = 0.35  # of the budget, where the rest has use for more


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a paper. What stands before the first heading has level 0 and no title."""

    level: int
    title: str
    text: str


def read_paper(path: Path) -> str:
    """The text of a paper.

    Raises:
        RecordError: not a file, of an unknown kind, damaged, or without text.
        ConfigError: a PDF, and pypdf is not installed.
    """
    name = path.name.lower()
    try:
        if path.stat().st_size > LONGEST:
            raise RecordError(f"{path}: more than {LONGEST >> 20} MiB; expected one paper")
        if name.endswith(".pdf"):
            text = mark_headings(_pdf_text(path))
        elif name.endswith((".tex", *ARCHIVES)):
            text = latex_text(open_sources(path), source=str(path))
        elif name.endswith((".md", ".markdown")):
            text = decode(path.read_bytes())
        elif name.endswith((".txt", ".text")):
            text = mark_headings(decode(path.read_bytes()))
        else:
            raise RecordError(f"{path}: expected .pdf, .tex, .md, .txt, or an archive ({', '.join(ARCHIVES)})")
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error}") from error
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip()
    if len(text) < 200:
        raise RecordError(f"{path}: found {len(text)} characters of text; expected a paper (a scanned one has no text)")
    return text + "\n"


def mark_headings(text: str) -> str:
    """Plain text with its headings marked, as far as they can be told: `3.1 Model` and `Abstract` on lines alone.

    A letter alone numbers a heading after the references only: titles and sentences begin with `A` too.
    """
    lines = []
    late = False
    for line in text.splitlines():
        plain = line.strip()
        late = late or bool(_END.match(plain))
        numbered = _NUMBERED.match(plain)
        if numbered and (late or len(numbered[1]) > 1 or numbered[1].isdigit()) and _is_heading(plain):
            lines.append(f"\n{'#' * (numbered[1].count('.') + 1)} {plain}\n")
        elif _NAMED.match(plain):
            lines.append(f"\n# {plain}\n")
        else:
            lines.append(line)
    return "\n".join(lines)


def _is_heading(line: str) -> bool:
    return not line.endswith((".", ",", ";")) and len(line.split()) <= 12


def sections(text: str) -> list[Section]:
    """The parts of a paper in their order; joined again by `join_sections` they are the whole."""
    found: list[Section] = []
    level, title, lines, fenced = 0, "", [], False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        heading = None if fenced else _HEADING.match(line)
        if heading is None:
            lines.append(line)
            continue
        found.append(Section(level, title, "\n".join(lines).strip("\n")))
        level, title, lines = len(heading[1]), heading[2], []
    found.append(Section(level, title, "\n".join(lines).strip("\n")))
    return [part for part in found if part.title or part.text.strip()]


def join_sections(parts: Sequence[Section]) -> str:
    """The text of several parts."""
    return "\n\n".join(_written(part) for part in parts) + "\n"


def shortened(text: str, budget: int) -> str:
    """At most `budget` characters of a paper, in its order: all but references where they fit; else the beginning and
    what the paper does, then results, then the rest, each as far as there is room. What was cut is marked."""
    parts = [part for part in _ranked(sections(text)) if part[0] is not None]
    whole = join_sections([part for _, part in parts])
    if len(whole) <= budget:
        return whole
    if budget < 4 * LEAST:
        return whole[: max(0, budget)]
    left = budget - len(CUT) - 1  # marks and blank lines take room too
    kept: dict[int, str] = {}
    begun = 0
    for wanted in range(4):
        for place, (rank, part) in enumerate(parts):
            room = left if wanted else min(left, int(_BEGINNING_SHARE * budget) - begun)
            if rank != wanted or room < LEAST:
                continue
            written = _written(part)
            kept[place] = written if len(written) + 2 <= room else _cut(written, room - 2 - len(CUT))
            left -= len(kept[place]) + 2
            begun += 0 if wanted else len(kept[place]) + 2
    return "\n\n".join(kept[place] for place in sorted(kept)).rstrip() + "\n"


def _ranked(parts: Sequence[Section]) -> list[tuple[int | None, Section]]:
    """Each part with the order in which it is kept; None: never. Parts below another one share its fate."""
    found: list[tuple[int | None, Section]] = []
    above: list[tuple[int, int | None]] = []  # levels and ranks of the headings that a part stands under
    appended = False
    for number, part in enumerate(parts):
        while above and above[-1][0] >= part.level:
            above.pop()
        rank = _rank(part.title, first=number == 0)
        if above and above[-1][1] != 0:
            inherited = above[-1][1]
            rank = None if rank is None or inherited is None else max(rank, inherited)
        appended = appended or bool(re.search(r"appendi|supplement|references|bibliography", part.title, re.I))
        if appended and rank is not None:
            rank = 3
        found.append((rank, part))
        # A title heads the whole paper: what stands below it is judged by itself.
        above.append((part.level, 0 if number == 0 else rank))
    return found


def _rank(title: str, *, first: bool) -> int | None:
    title = _NUMBER.sub("", title)
    if first or _BEGINNING.search(title):
        return 0
    if _DROPPED.search(title):
        return None
    return 3 if _LATE.search(title) else 2 if _RESULTS.search(title) else 1


def _written(part: Section) -> str:
    return f"{'#' * part.level} {part.title}\n\n{part.text}".rstrip() if part.title else part.text


def _cut(text: str, length: int) -> str:
    """The beginning of a text up to the end of a sentence or a word, marked as cut."""
    if length <= 0:
        return ""
    piece = text[:length]
    for end in ("\n\n", ". ", " "):
        place = piece.rfind(end)
        if place > length // 2:
            piece = piece[: place + 1]
            break
    return piece.rstrip() + CUT


def _pdf_text(path: Path) -> str:
    try:
        import pypdf  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading PDF needs the package pypdf (pip install 'asiarch-hpc[papers]'); "
            "or give the LaTeX source, which is read better"
        ) from error
    try:
        reader = pypdf.PdfReader(path)
        text = "\n".join(page.extract_text() or "" for page in reader.pages)
    except Exception as error:  # a damaged or encrypted file raises nearly anything
        raise RecordError(f"{path}: not a readable PDF: {type(error).__name__}: {error}") from error
    text = text.replace("\0", "").replace("ﬁ", "fi").replace("ﬂ", "fl").replace("ﬀ", "ff")
    return re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", text)
