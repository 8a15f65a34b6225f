"""Reading of replies: whatever a model writes, it is read or refused with a reason, and read the same with noise."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from asiarch_hpc.agents.reply import Reply, ReplyError, apply_diff, parse_blocks


class Design(BaseModel):
    """Two plain fields and one of program text."""

    name: str = Field(min_length=1)
    score: int
    source: str = ""


DESIGN = Reply("Design", Design, code={"source": "python"})
PLAIN = Reply("Edit", dict, code={"source": "python"}, schema={"type": "object"})

pieces = st.sampled_from(
    ["```json\n", "```python\n", "```\n", "~~~\n", "{", "}", "[", '"name": ', '"a", ', ",]", ": 7,", "</think>", "```"]
) | st.sampled_from(
    ["<think>", '{"name": "a", "score": 1}', '{"name": "\\ud800"}', "\n", "null", "NaN", "1e999", "\r\n", "  "]
)
messy = st.lists(st.one_of(pieces, st.text(max_size=8)), max_size=40).map("".join)
prose = st.text(st.characters(codec="utf-8", exclude_characters="{}`~<"), max_size=60)
line = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12)
code = st.lists(line.filter(lambda text: not text.lstrip().startswith(("```", "~~~"))), max_size=6).map(
    lambda lines: "".join(text + "\n" for text in lines)
)


@given(st.one_of(messy, st.text(st.characters())), st.sampled_from([DESIGN, PLAIN]))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_with_a_reason(text: str, reply: Reply[object]) -> None:
    try:
        found = parse_blocks(text, reply)
    except ReplyError as error:
        str(error).encode()
    else:
        assert isinstance(found, Design if reply is DESIGN else dict)
        values = found.model_dump() if isinstance(found, Design) else {k: v for k, v in found.items() if k != "source"}
        json.dumps(values, ensure_ascii=False).encode()


@given(
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda text: "```" not in text),
    score=st.integers(-100, 100),
    source=code,
    before=prose,
    between=prose,
    after=prose,
    fence=st.sampled_from(["```", "~~~", "````"]),
    language=st.sampled_from(["python", "py", "Python", "python3"]),
    comma=st.booleans(),
    swapped=st.booleans(),
    thought=st.sampled_from(["", "<think>\n```json\n{}\n```\n</think>\n", "I think {x}.</think>"]),
)
@settings(max_examples=200, deadline=None)
def test_a_well_formed_reply_is_read_with_noise_around_it(
    name: str,
    score: int,
    source: str,
    before: str,
    between: str,
    after: str,
    fence: str,
    language: str,
    comma: bool,
    swapped: bool,
    thought: str,
) -> None:
    data = json.dumps({"name": name, "score": score}, indent=2)
    if comma:
        data = data[:-2] + ",\n}"
    blocks = [f"{fence}json\n{data}\n{fence}\n", f"{fence}{language}\n{source}{fence}\n"]
    first, second = reversed(blocks) if swapped else blocks
    text = f"{thought}{before}\n{first}{between}\n{second}{after}"
    assert parse_blocks(text, DESIGN) == Design(name=name, score=score, source=source)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "a", "score": 1}',
        'Sure: {"name": "a", "score": 1} as asked',
        '```\n{"name": "a", "score": 1}\n```',
        '```json\n{"name": "a", "score": "1",}\n```',
        '```JSON title="x"\n{"name": "a", "score": 1}\n```',
        '```json\n{"broken": \n```\n```json\n{"name": "a", "score": 1}\n```',
        '```json\n{"name": "a", "score": 1}',
        '```json\r\n{"name": "a", "score": 1}\r\n```\r\n',
    ],
)
def test_slips_of_form_are_forgiven(text: str) -> None:
    assert parse_blocks(text, DESIGN) == Design(name="a", score=1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ("```json\n[1, 2]\n```", "a list"),
        ('```json\n{"name": "a"}\n```', "score"),
        ("```python\nx = 1\n```", "name"),
        ('{"name": "a", "score": }', "does not parse"),
        ('{"name": "\\ud800", "score": 1}', "surrogate"),
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "does not parse"),
        ('{"name": "a", "score": ' + "1" * 5000 + "}", "does not parse"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, reason: str) -> None:
    with pytest.raises(ReplyError, match=reason) as found:
        parse_blocks(text, DESIGN)
    assert len(str(found.value)) < 3000


@pytest.mark.parametrize("text", ["", '{"name": "\\ud800"}', "[" * 100_000])
def test_plain_objects_are_read_with_the_same_care(text: str) -> None:
    with pytest.raises(ReplyError):
        parse_blocks(text, PLAIN)


def test_a_fence_that_is_never_closed_hides_no_other() -> None:
    text = '~~~\nfor example\n```json\n{"name": "a", "score": 1}\n```\n```python\nx = """\n~~~~\n"""\n```\n'
    assert parse_blocks(text, DESIGN).source == 'x = """\n~~~~\n"""\n'


@pytest.mark.parametrize("word", ["```python\n", "~~~a\n", "```json\n{", "{", "</think", "<<<<<<< SEARCH\n", ", "])
def test_a_degenerate_reply_takes_no_long_time_to_refuse(word: str) -> None:
    text = word * (60_000 // len(word))
    began = time.perf_counter()
    for read in (lambda: parse_blocks(text, DESIGN), lambda: apply_diff("x\n", text)):
        with pytest.raises(ReplyError):
            read()
    assert time.perf_counter() - began < 5


@given(st.lists(line, min_size=1, max_size=10), st.data(), code)
@settings(max_examples=300, deadline=None)
def test_a_diff_changes_the_lines_that_it_names(lines: list[str], data: st.DataObject, new: str) -> None:
    first = data.draw(st.integers(0, len(lines) - 1))
    last = data.draw(st.integers(first + 1, len(lines)))
    part = lines[first:last]
    diff = "\n".join(["Some words", "<<<<<<< SEARCH", *part, "=======", new + ">>>>>>> REPLACE", "more"])
    if any(text.startswith(("=====", ">>>>>", "<<<<<")) for text in [*lines, *new.split("\n")]):
        return
    text = "\n".join(lines) + "\n"

    def places(wanted: list[str], among: list[str]) -> list[int]:
        return [i for i in range(len(among) - len(wanted) + 1) if among[i : i + len(wanted)] == wanted]

    exact = places(part, lines)
    if "".join(part).strip() and len(exact) == 1:
        assert apply_diff(text, diff) == "".join(f"{x}\n" for x in lines[:first]) + new + "".join(
            f"{x}\n" for x in lines[last:]
        )
    else:
        with pytest.raises(ReplyError):
            apply_diff(text, diff)


@given(messy | st.text(), st.one_of(messy, st.text()))
@settings(max_examples=150, deadline=None)
def test_any_diff_is_applied_or_refused(text: str, noise: str) -> None:
    for diff in (noise, f"<<<<<<< SEARCH\n{noise}\n=======\n{text}\n>>>>>>> REPLACE"):
        with contextlib.suppress(ReplyError):
            assert isinstance(apply_diff(text, diff), str)


def diff(old: str, new: str) -> str:
    return f"<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n"


@pytest.mark.parametrize(
    ("text", "change", "expected"),
    [
        ("a = 1\nb = 2\n", diff("a = 1\n", "a = 3\n"), "a = 3\nb = 2\n"),
        ("a = 1\nb = 2", diff("b = 2\n", "b = 3\n"), "b = 3"),
        ("a = 1  \nb = 2\n", diff("a = 1\n", "a = 3\n"), "a = 3\nb = 2\n"),
        ("a = 1\nb = 2\n", diff("a = 1\n", ""), "b = 2\n"),
        ("a = 1\nb = 2\n", diff("a = 1  \n", ""), "b = 2\n"),
        ("a = 1\nb = 2\n", diff("a = 1\n", "c = 0\n") + diff("c = 0\n", "d = 0\n"), "d = 0\nb = 2\n"),
        ("a = 1\naa = 1\n", diff("a = 1\n", "a = 2\n"), "a = 2\naa = 1\n"),
        ("a = 1\nb = 2\n", diff("a = 1\n", "a = 3\n").replace("\n", "\r\n"), "a = 3\nb = 2\n"),
    ],
)
def test_diffs_that_apply(text: str, change: str, expected: str) -> None:
    assert apply_diff(text, change).endswith(expected)


@pytest.mark.parametrize(
    ("text", "change", "reason"),
    [
        ("a = 1\n", "a = 2", "no SEARCH/REPLACE block"),
        ("a = 1\n", diff("b = 1\n", "b = 2\n"), "0 times"),
        ("a = 1\na = 1\n", diff("a = 1\n", "b = 2\n"), "2 times"),
        ("x\ny\nx\ny\nx\n", diff("x\ny\nx\n", "z\n"), "2 times"),
        ("aa = 1\n", diff("a = 1\n", "a = 2\n"), "0 times"),
        ("    x = 1\n    y = 2\n", diff("x = 1\n    y = 2\n", "z = 1\n"), "0 times"),
        ("a\n\nb", diff("\n", "c\n"), "once"),
        ("a\n", diff("", "c\n"), "times"),
    ],
)
def test_diffs_that_do_not_apply_say_why(text: str, change: str, reason: str) -> None:
    with pytest.raises(ReplyError, match=reason):
        apply_diff(text, change)
