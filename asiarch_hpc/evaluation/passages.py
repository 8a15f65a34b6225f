"""Questions about held-out passages: which continuation, which next line. Lengths are in UTF-8 bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence

CONTEXT_BYTES = 240
CONTINUATION_BYTES = 80
# A score is a sum over the whole continuation, so lengths must be alike for the comparison to be about the text.
PASSAGE_SLACK = 4
LINE_SLACK = 4
MIN_LINE = 16
MAX_LINE = 80
CONTEXT_LINES = 6
EXCERPT = 8000  # characters around a line in which its distractors are sought
# Tables and blank space are easy to predict anywhere; passages need this share of other characters.
MIN_INK = 0.7
TRIES = 20
DISTRACTORS = 3

Question = tuple[str, str, list[str]]


def text_question(rng: random.Random, texts: Sequence[str]) -> Question | None:
    """A passage, what follows it, and three passages of the same length from three other documents.

    None when the randomly chosen documents have no suitable place.
    """
    if len(texts) <= DISTRACTORS:
        return None
    documents = rng.sample(range(len(texts)), 1 + DISTRACTORS)
    passages = [_passage(rng, texts[index]) for index in documents]
    found = [passage for passage in passages if passage is not None]
    continuations = [continuation for _, continuation in found]
    if len(set(continuations)) <= DISTRACTORS:
        return None
    return found[0][0], continuations[0], continuations[1:]


def line_question(rng: random.Random, texts: Sequence[str]) -> Question | None:
    """Some lines, the next one, and three other lines of the same document, indented alike.

    The choices begin with the line break, so that the context ends in a whole token. None when the randomly chosen
    place does not suit.
    """
    text = rng.choice(texts) if texts else ""
    start = rng.randrange(max(1, len(text) - EXCERPT))
    lines = text[start : start + EXCERPT].splitlines()[1 if start else 0 : -1]
    if len(lines) < 2:
        return None
    at = rng.randrange(1, len(lines))
    true = lines[at].strip()
    if not _is_line(true) or not lines[at - 1].strip():
        return None
    first = max(0, at - CONTEXT_LINES)
    near = {line.strip() for line in lines[first:at]}
    if true in near:
        return None
    size = len(true.encode())
    alike = {line.strip() for line in lines if _is_line(line.strip())} - near - {true}
    pool = sorted(line for line in alike if abs(len(line.encode()) - size) <= LINE_SLACK)
    if len(pool) < DISTRACTORS:
        return None
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    choices = [f"\n{indent}{line}" for line in (true, *rng.sample(pool, DISTRACTORS))]
    return _tail("\n".join(lines[first:at]).rstrip(), CONTEXT_BYTES), choices[0], choices[1:]


def _is_line(line: str) -> bool:
    return MIN_LINE <= len(line.encode()) <= MAX_LINE and _ink(line) >= MIN_INK and any(c.isalpha() for c in line)


def _passage(rng: random.Random, text: str) -> tuple[str, str] | None:
    """A context and its continuation, split where a word ends, so that no token straddles the split."""
    last = len(text) - CONTINUATION_BYTES
    for _ in range(TRIES):
        if last <= 1:
            return None
        at = rng.randrange(1, last)
        if not text[at].isspace() or text[at - 1].isspace():
            continue
        continuation = _head(text[at : at + CONTINUATION_BYTES], CONTINUATION_BYTES)
        size = len(continuation.encode())
        if size >= CONTINUATION_BYTES - PASSAGE_SLACK and _ink(continuation) >= MIN_INK:
            return _tail(text[max(0, at - CONTEXT_BYTES) : at], CONTEXT_BYTES), continuation
    return None


def _ink(text: str) -> float:
    return sum(not c.isspace() for c in text) / max(1, len(text))


def _head(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def _tail(text: str, size: int) -> str:
    return text.encode()[-size:].decode(errors="ignore")
