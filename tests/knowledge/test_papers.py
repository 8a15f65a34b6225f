"""Papers as text: every form that they come in, nothing read outside of them, and what is kept of a long one."""

from __future__ import annotations

import gzip
import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.errors import ConfigError, RecordError
from asiarch_hpc.knowledge.papers import join_sections, mark_headings, read_paper, sections, shortened

FILLER = "The state of the layer is read by a query and written under a key. " * 6
MAIN = rf"""
\documentclass{{article}} % a class
\usepackage{{amsmath}}
\newcommand{{\vk}}{{\mathbf{{k}}}}
\title{{Gated Mixers \\ with \emph{{Memory}}}}
\author{{A. Author \and B. Writer}}
\begin{{document}}
\maketitle
\begin{{abstract}}
We add a gate. % TODO: not for readers
It costs 5\% more.
\end{{abstract}}
\section{{Introduction}}\label{{sec:intro}}
Others \cite{{one,two}} add states~\citep[see]{{three}}. {FILLER}
\input{{parts/method}}
\begin{{comment}}
Secret remarks.
\end{{comment}}
\include{{missing}}
\appendix
\section{{Proofs}}
It follows.
\begin{{thebibliography}}{{9}}
\bibitem{{one}} A reference.
\end{{thebibliography}}
\end{{document}}
After the end.
"""
METHOD = r"""
\section[Short]{Our {gated} method}
\subsection{Update}
\begin{equation}
S_t = g_t S_{t-1} + v_t k_t^\top % the update
\end{equation}
\begin{itemize}
\item It is \textbf{very \emph{fast}}.
\end{itemize}
\input{parts/method}
"""
FILES = {"ms.tex": MAIN, "parts/method.tex": METHOD, "fig.pdf": "%PDF", "old.tex": "\\section{Old}"}


def check_latex(text: str) -> None:
    assert text.startswith("# Gated Mixers with Memory\n\nA. Author B. Writer\n")
    titles = [(part.level, part.title) for part in sections(text)]
    assert titles == [
        (1, "Gated Mixers with Memory"), (1, "Abstract"), (1, "Introduction"), (1, "Our {gated} method"), (2, "Update"),
        (1, "Appendix"), (1, "Proofs"),
    ]  # fmt: skip
    assert "We add a gate. It costs 5% more." in " ".join(text.split())
    assert "S_t = g_t S_{t-1} + v_t k_t^\\top" in text
    assert "- It is very fast." in text
    assert "Others add states ." in text
    for gone in ("TODO", "Secret", "usepackage", "newcommand", "A reference", "After the end", "label", "cite", "Old"):
        assert gone not in text, gone


def tar(path: Path, files: Mapping[str, str], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_latex_comes_as_file_or_archive(tmp_path: Path) -> None:
    (tmp_path / "source/parts").mkdir(parents=True)
    for name, text in FILES.items():
        (tmp_path / "source" / name).write_text(text)
    check_latex(read_paper(tmp_path / "source/ms.tex"))
    check_latex(read_paper(tar(tmp_path / "a.tar.gz", FILES)))
    check_latex(read_paper(tar(tmp_path / "b.tar", {f"./2406.1/{name}": text for name, text in FILES.items()}, "w")))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    check_latex(read_paper(tmp_path / "c.zip"))
    single = MAIN.replace("\\input{parts/method}", METHOD)
    (tmp_path / "d.gz").write_bytes(gzip.compress(single.encode("latin-1")))
    check_latex(read_paper(tmp_path / "d.gz"))


def test_nothing_outside_the_source_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret.tex").write_text("SECRET")
    (tmp_path / "paper").mkdir()
    os.symlink(tmp_path / "secret.tex", tmp_path / "paper/link.tex")
    wanted = ["../secret", "link", str(tmp_path / "secret"), "/etc/hostname", "../../../../../../etc/passwd"]
    body = FILLER + "".join(f"\\input{{{name}}}\\input {name}\n" for name in wanted)
    (tmp_path / "paper/main.tex").write_text(body)
    text = read_paper(tmp_path / "paper/main.tex")
    assert "SECRET" not in text
    assert "root:" not in text
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("link.tex")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.tex")
        archive.addfile(link)
        info = tarfile.TarInfo("main.tex")
        info.size = len(body)
        archive.addfile(info, io.BytesIO(body.encode()))
    assert "SECRET" not in read_paper(tmp_path / "x.tar")


def test_of_several_files_the_compiled_one_is_read(tmp_path: Path) -> None:
    other = "\\documentclass{x}\\begin{document}Supplement. " + FILLER * 20 + "\\end{document}"
    text = read_paper(tar(tmp_path / "a.tar.gz", {"supplement.tex": other, "paper.tex": MAIN, "m.tex": METHOD}))
    assert text.startswith("# Gated Mixers")
    bare = {"a.tex": "Short.", "b.tex": "Long. " + FILLER}
    assert read_paper(tar(tmp_path / "b.tar.gz", bare)).startswith("Long.")


def test_markdown_and_plain_text(tmp_path: Path) -> None:
    markdown = f"# Title\n\n{FILLER}\n\n```python\n# no heading\n```\n\n## Method ##\n\nText.\n"
    (tmp_path / "a.md").write_bytes(markdown.replace("\n", "\r\n").encode("utf-8-sig"))
    found = sections(read_paper(tmp_path / "a.md"))
    assert [part.title for part in found] == ["Title", "Method"]
    plain = f"A Title\n\nAbstract\n{FILLER}\n1 Introduction\n\n3.1. The Layer\nText\n64 GPUs were used, and more.\n"
    (tmp_path / "a.txt").write_text(f"{plain}References\nA Proofs\n")
    titles = [(part.level, part.title) for part in sections(read_paper(tmp_path / "a.txt"))]
    assert titles == [
        (0, ""), (1, "Abstract"), (1, "1 Introduction"), (2, "3.1. The Layer"), (1, "References"),
        (1, "A Proofs"),
    ]  # fmt: skip


def pdf(*lines: str) -> bytes:
    """A PDF of one page, each line in its place."""
    drawn = "".join(f"BT /F1 10 Tf 40 {760 - 14 * i} Td ({line}) Tj ET\n" for i, line in enumerate(lines)).encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn),
    ]
    data, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    trailer = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(data))
    return data + head + table + trailer


def test_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("A Title", "Abstract", "We add a mem-", "ory. " + FILLER[:80], "2 Method", *[FILLER[:60]] * 5))
    text = read_paper(path)
    assert [part.title for part in sections(text)] == ["", "Abstract", "2 Method"]
    assert "We add a memory." in text
    path.write_bytes(b"%PDF-1.4 damaged")
    with pytest.raises(RecordError, match="not a readable PDF"):
        read_paper(path)
    path.write_bytes(pdf("Scan"))
    with pytest.raises(RecordError, match="4 characters of text"):
        read_paper(path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    (tmp_path / "a.pdf").write_bytes(pdf("A Title"))
    with pytest.raises(ConfigError, match="needs the package pypdf"):
        read_paper(tmp_path / "a.pdf")


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.doc", b"x" * 999, "expected .pdf, .tex, .md, .txt"),
        ("a.txt", b"short", "5 characters of text"),
        ("a.tar.gz", b"no archive", "not a readable archive"),
        ("a.zip", b"PK\x05\x06" + b"\0" * 18, "holds no .tex file"),
        ("a.tar.gz", gzip.compress(b"x" * 5000, mtime=0)[:20], "not a readable archive"),
        ("a.tex", b"% only a comment", "characters of text"),
    ],
)
def test_what_is_no_paper_is_refused(tmp_path: Path, name: str, data: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RecordError, match=complaint):
        read_paper(tmp_path / name)
    with pytest.raises(RecordError, match="cannot be read"):
        read_paper(tmp_path / "missing.txt")


TITLES = st.sampled_from(
    ["Abstract", "1 Introduction", "2 Related Work", "3 Method", "4 Experiments", "References", "A Proofs", "Theory"]
)
PAPERS = st.lists(st.tuples(TITLES, st.integers(1, 3), st.integers(0, 3000)), max_size=12).map(
    lambda parts: (
        "Title\n\n"
        + "\n\n".join(f"{'#' * level} {title}\n\n{(FILLER * 10)[:length]}" for title, level, length in parts)
    )
)


@settings(deadline=None, max_examples=300)
@given(PAPERS, st.integers(0, 20000))
def test_a_shortened_paper_keeps_its_order_and_its_budget(text: str, budget: int) -> None:
    assert join_sections(sections(join_sections(sections(text)))) == join_sections(sections(text))
    short = shortened(text, budget)
    assert len(short) <= budget
    assert "# References" not in short
    if budget < 1000:
        return
    assert short.startswith("Title")
    titles = iter([(part.level, part.title) for part in sections(text)])
    assert all((part.level, part.title) in titles for part in sections(short))


def test_the_method_stays_when_room_is_short() -> None:
    body = FILLER * 10
    names = ["Abstract", "Introduction", "Related Work", "Gated Memory", "Experiments", "Conclusion", "References"]
    text = "Title\n\n" + "\n\n".join(f"# {name}\n\n{name}: {body}" for name in (*names, "A Derivation"))
    kept = {budget: [part.title for part in sections(shortened(text, budget))] for budget in (12000, 16500, 40000)}
    assert kept[12000][:4] == ["", "Abstract", "Gated Memory", "Experiments"]
    assert "Related Work" not in kept[12000]
    assert kept[16500][:5] == ["", "Abstract", "Introduction", "Gated Memory", "Experiments"]
    assert kept[40000] == ["", *[name for name in names if name != "References"], "A Derivation"]
    assert "Gated Memory: The state" in shortened(text, 2000)
    assert "[…]" in shortened(text, 2000)


def test_headings_are_told_from_sentences() -> None:
    lines = (
        "1 Introduction",
        "2.3.1 A Layer",
        "12 heads are used here.",
        "7 The",
        "B.2 More proofs",
        "METHOD",
        "3 apples",
    )
    marked = [line for line in mark_headings("\n".join(lines)).splitlines() if line.startswith("#")]
    assert marked == ["# 1 Introduction", "### 2.3.1 A Layer", "# 7 The", "## B.2 More proofs", "# METHOD"]
