"""Questions about held-out text: a continuation and four passages, one of which it follows.

The likelihood of one continuation after different contexts is compared, not that of different continuations: how
probable the words are by themselves cancels, and what remains is how much the model takes from the context. Lengths
are in UTF-8 bytes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

CHOICES = 4
CONTEXT_BYTES = 192
CONTINUATION_BYTES = 64
# A multi-byte character is never cut, so a continuation may be this much shorter.
SLACK_BYTES = 4
LINE_BYTES = (12, 80)
CONTEXT_LINES = 6
EXCERPT = 8000  # characters of a document among which the contexts of one line are chosen
# Tables and blank space are easy to predict anywhere; passages need this share of other characters.
MIN_INK = 0.6
TRIES = 20

Passage = tuple[str, str]  # context, continuation


def text_passages(rng: random.Random, texts: Sequence[str]) -> list[Passage] | None:
    """Passages of four different documents; None when the randomly chosen places do not suit."""
    if len(texts) < CHOICES:
        return None
    return _distinct([_passage(rng, texts[index]) for index in rng.sample(range(len(texts)), CHOICES)])


def line_passages(rng: random.Random, texts: Sequence[str]) -> list[Passage] | None:
    """Lines, each with those before it, from one stretch of one document; None as above."""
    text = rng.choice(texts) if texts else ""
    start = rng.randrange(max(1, len(text) - EXCERPT))
    lines = text[start : start + EXCERPT].splitlines()[1 if start else 0 : -1]
    if len(lines) < 2 * CHOICES:
        return None
    return _distinct([_line(rng, lines) for _ in range(CHOICES)])


def _distinct(passages: Sequence[Passage | None]) -> list[Passage] | None:
    found = [passage for passage in passages if passage is not None]
    if len({context for context, _ in found}) < CHOICES or len({text for _, text in found}) < CHOICES:
        return None
    return found


def _passage(rng: random.Random, text: str) -> Passage | None:
    """A context and its continuation, split where a word ends, so that no token straddles the split."""
    last = len(text) - CONTINUATION_BYTES
    for _ in range(TRIES if last > 1 else 0):
        at = rng.randrange(1, last)
        if not text[at].isspace() or text[at - 1].isspace():
            continue
        continuation = _head(text[at : at + CONTINUATION_BYTES])
        if len(continuation.encode()) >= CONTINUATION_BYTES - SLACK_BYTES and _ink(continuation) >= MIN_INK:
            return _tail(text[max(0, at - CONTEXT_BYTES) : at]), continuation
    return None


def _line(rng: random.Random, lines: Sequence[str]) -> Passage | None:
    """Some lines and the next one; it begins with the line break, so that the context ends in a whole token."""
    least, most = LINE_BYTES
    for _ in range(TRIES):
        at = rng.randrange(1, len(lines))
        line = lines[at].rstrip()
        before = "\n".join(lines[max(0, at - CONTEXT_LINES) : at])
        if least <= len(line.strip().encode()) <= most and before.strip() and not before[-1].isspace():
            return _tail(before), f"\n{line}"
    return None


def _ink(text: str) -> float:
    return sum(not c.isspace() for c in text) / len(text)


def _head(text: str) -> str:
    return text.encode()[:CONTINUATION_BYTES].decode(errors="ignore")


def _tail(text: str) -> str:
    return text.encode()[-CONTEXT_BYTES:].decode(errors="ignore")
