"""Greedy continuation of texts by a model without a cache: every step computes each unfinished row again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation.scoring import Call, ServedModel

_DEFAULT_TOKENS = 256  # lm-eval's own, where a task names no number


@dataclass(slots=True)
class Text:
    """One text to continue.

    Attributes:
        ids: of the prompt; its beginning is left out where it and `tokens` new ones do not fit.
        tokens: most new ones.
        until: strings of which the first ends the continuation, without itself.
        new: the continuation so far.
    """

    ids: list[int]
    tokens: int
    until: Sequence[str]
    new: list[int] = field(default_factory=list)


def text_of(ids: list[int], arguments: dict[str, Any], max_length: int, *, begin: list[int]) -> Text:
    """A text from the arguments of lm-eval's `generate_until`.

    Args:
        begin: ids to stand before the prompt, whatever of it is left out; one at most.

    Raises:
        EvaluationError: it asks for random continuations, or for more tokens than the model reads.
    """
    if arguments.get("do_sample") and arguments.get("temperature", 1.0) > 0:
        raise EvaluationError("a task asks for random continuations (do_sample); only the likeliest ones are made here")
    until = arguments.get("until") or []
    tokens = int(arguments.get("max_gen_toks", _DEFAULT_TOKENS))
    if not (0 < tokens < max_length):
        raise EvaluationError(
            f"a task asks for {tokens} new tokens, the model reads {max_length}; use a longer scale.length"
        )
    lost = max(0, len(begin) + len(ids) + tokens - max_length)
    return Text(begin + ids[lost:], tokens, [until] if isinstance(until, str) else list(until))


def continue_texts(
    model: ServedModel,
    texts: Sequence[Text],
    *,
    calls: Callable[[Iterable[int]], Iterable[Call]],
    decode: Callable[[Sequence[int]], str],
    eos: int,
) -> list[str]:
    """The likeliest continuation of each text, up to its end.

    Args:
        calls: batches of the texts with these indices, each place the last token of one.
    """
    answers = [""] * len(texts)
    unfinished = set(range(len(texts)))
    while unfinished:
        for call, states in model.run(calls(sorted(unfinished))):
            for index, token in zip(call.wanted, model.likeliest(states), strict=True):
                text = texts[index]
                if token != eos:
                    text.new.append(token)
                answers[index] = decode(text.new)
                ended = any(end and end in answers[index] for end in text.until)
                if ended or token == eos or len(text.new) == text.tokens:
                    unfinished.discard(index)
    for index, text in enumerate(texts):
        for end in filter(None, text.until):
            answers[index] = answers[index].split(end)[0]
    return answers
