"""LaTeX sources as text: the main file with what it includes, without comments, preamble and markup of form.

Formulas stay as they are, models read them. Nothing is unpacked onto the disk, and nothing outside the archive or the
main file's folder is read: a paper is a stranger's text.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from asiarch_hpc.errors import RecordError

LONGEST = 8 << 20  # bytes of one file of text
FILES = 2000  # of one archive
DEPTH = 12  # of inclusions

_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\n]*")
_INPUT = re.compile(r"\\(?:input|include|subfile)\s*(?:\{([^{}]+)\}|([^\s{}\\]+))")
_IMPORT = re.compile(r"\\(?:sub)?import\s*\{([^{}]*)\}\s*\{([^{}]+)\}")
_LEVELS = {"part": 1, "chapter": 1, "section": 1, "subsection": 2, "subsubsection": 3, "paragraph": 4}
_SECTION = re.compile(r"\\(part|chapter|(?:sub){0,2}section|paragraph)\*?\s*(?:\[[^\]]*\])?\s*(?=\{)")
_GONE = re.compile(
    r"\\(?:label|ref|eqref|cref|Cref|autoref|cite[a-zA-Z]*|nocite|vspace|hspace|includegraphics|bibliographystyle|thanks"
    r"|footnotemark|setlength|renewcommand|newcommand|input|include|graphicspath|pagestyle|thispagestyle)"
    r"\*?\s*(?:\[[^\]]*\]\s*)*(?:\{[^{}]*\}\s*){0,2}"
)
_BARE = re.compile(
    r"\\(?:maketitle|centering|noindent|newpage|clearpage|appendix|tableofcontents|bigskip|medskip|smallskip|small|tiny"
    r"|scriptsize|footnotesize|large|Large|normalsize|hfill|vfill|par|toprule|midrule|bottomrule|hline)\b\*?"
)
_STYLED = re.compile(r"\\(?:text(?:bf|it|tt|sc|sf|rm|up|md|sl)|emph|underline|footnote|caption|url)\s*\{([^{}]*)\}")


@dataclass(frozen=True)
class Sources:
    """Files of text by their names; `main` is the one to begin with, where that is known."""

    names: tuple[str, ...]
    read: Callable[[str], str | None]
    main: str = ""


def open_sources(path: Path) -> Sources:
    """A .tex file with its folder, or an archive.

    Raises:
        RecordError: damaged, or not LaTeX.
    """
    if path.suffix.lower() == ".tex":
        folder = path.resolve().parent
        return Sources((path.name,), lambda name: _beside(folder, name), path.name)
    try:
        files = _archived(path)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        OSError,
        EOFError,
        zlib.error,
        RuntimeError,
        NotImplementedError,
    ) as e:
        raise RecordError(f"{path}: not a readable archive: {e}") from e
    if not files:
        raise RecordError(f"{path}: the archive holds no .tex file")
    return Sources(tuple(sorted(files)), files.get)


def latex_text(sources: Sources, *, source: str) -> str:
    """The text of a paper, headings marked by `#`.

    Raises:
        RecordError: no file that could be the main one.
    """
    main = sources.main or _main(sources)
    if not main:
        raise RecordError(f"{source}: no .tex file with \\documentclass or any text")
    whole = _resolved(sources, main, str(PurePosixPath(main).parent), ())
    preamble, begun, body = whole.partition("\\begin{document}")
    if not begun:
        preamble, body = "", whole
    body = body.partition("\\end{document}")[0]
    title = _argument(whole, "title")
    authors = _argument(preamble or whole, "author")
    for command in ("title", "author"):
        body = _without(body, command)
    head = [f"# {_plain(title)}" if title else "", _plain(authors)]
    return "\n\n".join(part for part in (*head, _plain(body)) if part.strip())


def decode(data: bytes) -> str:
    """Text of a file whose encoding nobody says: UTF-8, or Latin-1 where that fails."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _archived(path: Path) -> dict[str, str]:
    """The .tex files of an archive. arXiv gives a paper of one file as a compressed file without archive."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist()[:FILES] if _wanted(m.filename) and not m.is_dir()]
            return {_normal(m.filename): decode(archive.open(m).read(LONGEST)) for m in members}
    if tarfile.is_tarfile(path):
        found = {}
        with tarfile.open(path) as tar:
            for number, member in enumerate(tar):
                file = tar.extractfile(member) if number < FILES and member.isfile() and _wanted(member.name) else None
                if file is not None:
                    found[_normal(member.name)] = decode(file.read(LONGEST))
                if number >= FILES:
                    break
        return found
    with gzip.open(path) as single:
        return {"main.tex": decode(single.read(LONGEST))}


def _wanted(name: str) -> bool:
    return name.lower().endswith((".tex", ".bbl", ".ltx")) and "__MACOSX" not in name


def _normal(name: str) -> str:
    parts: list[str] = []
    for part in PurePosixPath(name.replace("\\", "/")).parts:
        if part == "..":
            parts = parts[:-1]
        elif part not in (".", "/"):
            parts.append(part)
    return "/".join(parts)


def _beside(folder: Path, name: str) -> str | None:
    """A file in a folder or below it; nothing of what links lead to outside."""
    path = (folder / name).resolve()
    try:
        if not path.is_relative_to(folder) or not path.is_file() or path.stat().st_size > LONGEST:
            return None
        return decode(path.read_bytes())
    except OSError:
        return None


def _main(sources: Sources) -> str:
    """The file that is compiled: it has a class and a document; of several the usual names, then the longest."""
    texts = {name: _uncommented(sources.read(name) or "") for name in sources.names if not name.endswith(".bbl")}
    whole = [name for name, text in texts.items() if "\\documentclass" in text and "\\begin{document}" in text]
    usual = [name for name in whole if PurePosixPath(name).stem.lower() in ("main", "ms", "paper", "arxiv")]
    candidates = usual or whole or [name for name, text in texts.items() if text.strip()]
    return max(candidates, key=lambda name: (len(_resolved(sources, name, _folder(name), ())), name), default="")


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _resolved(sources: Sources, name: str, root: str, above: tuple[str, ...]) -> str:
    """A file with all that it includes. LaTeX looks for files from the main one's folder on."""
    text = _uncommented(sources.read(name) or "")

    def include(match: re.Match[str]) -> str:
        wanted = "/".join(group for group in match.groups() if group).strip().strip('"')
        for place in (f"{root}/{wanted}", f"{_folder(name)}/{wanted}", wanted):
            for file in (_normal(f"{place}.tex"), _normal(place)):
                known = file not in (*above, name) and len(above) < DEPTH and not wanted.startswith("/")
                if known and sources.read(file) is not None:
                    return _resolved(sources, file, root, (*above, name))
        return ""

    return _IMPORT.sub(include, _INPUT.sub(include, text))


def _uncommented(text: str) -> str:
    text = re.sub(r"\\begin\{comment\}.*?\\end\{comment\}", "", text, flags=re.DOTALL)
    text = re.sub(r"\\iffalse\b.*?\\fi\b", "", text, flags=re.DOTALL)
    text = re.sub(r"^[ \t]*%[^\n]*\n?", "", text, flags=re.MULTILINE)  # a line of comment is no end of a paragraph
    return _COMMENT.sub(r"\1", text)


def _plain(text: str) -> str:
    """Text without bibliography, references and markup of form."""
    text = re.sub(r"\\begin\{thebibliography\}.*?(?:\\end\{thebibliography\}|\Z)", "", text, flags=re.DOTALL)
    text = re.sub(r"\\(?:bibliography|printbibliography)\b(?:\{[^{}]*\})?", "", text)
    text = re.sub(r"\\appendix\b", "\n\n# Appendix\n\n", text)
    text = re.sub(r"\\begin\{abstract\}", "\n\n# Abstract\n\n", text)
    text = _GONE.sub("", text)
    text = _headed(text)
    for _ in range(4):  # as deep as styles are nested in practice
        text = _STYLED.sub(r"\1", text)
    text = _BARE.sub("", text)
    text = re.sub(
        r"\\(?:begin|end)\{(?:abstract|figure|table|center|itemize|enumerate|wrapfigure|minipage|document|small)\*?\}"
        r"(?:\[[^\]]*\])?(?:\{[^{}]*\})*",
        "",
        text,
    )
    text = re.sub(r"\\item\b\s*", "- ", text).replace("~", " ").replace("\\%", "%").replace("\\&", "&")
    return re.sub(r"\n\s*\n+", "\n\n", text).strip()


def _headed(text: str) -> str:
    """Sections as lines that begin with `#`."""
    parts, place = [], 0
    for match in _SECTION.finditer(text):
        if match.start() < place:
            continue
        title, end = _braced(text, match.end())
        title = re.sub(r"\s+", " ", title.replace("\\\\", " ")).strip()
        parts += [text[place : match.start()], f"\n\n{'#' * _LEVELS[match[1]]} {title}\n\n" if title else ""]
        place = end
    return "".join([*parts, text[place:]])


def _argument(text: str, command: str) -> str:
    """The first argument of a command; empty where it does not stand there."""
    match = re.search(rf"\\{command}\s*(?:\[[^\]]*\])?\s*(?=\{{)", text)
    found = _braced(text, match.end())[0] if match else ""
    return re.sub(r"\s+", " ", re.sub(r"\\\\(?:\[[^\]]*\])?|\\(?:and|And|AND)\b", " ", found)).strip()


def _without(text: str, command: str) -> str:
    match = re.search(rf"\\{command}\s*(?:\[[^\]]*\])?\s*(?=\{{)", text)
    return text[: match.start()] + text[_braced(text, match.end())[1] :] if match else text


def _braced(text: str, start: int) -> tuple[str, int]:
    """What stands between the brace at `start` and its partner, and where it ends."""
    depth, place = 0, start
    while place < len(text):
        letter = text[place]
        if letter == "\\":
            place += 1
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : place], place + 1
        place += 1
    return "", start + 1
