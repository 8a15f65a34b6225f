"""Greedy continuation of texts by a model without a cache: every pass computes each unfinished row again.

Since a pass gives the likeliest token after every place of a row, it judges a guess of the next tokens as well: those
which followed when the last two tokens stood together before. As many are taken as are the likeliest ones; what is
written is what one token a pass would write (arXiv 2211.17192; guesses from the text itself: arXiv 2304.04487).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation.scoring import Call, ServedModel

_DEFAULT_TOKENS = 256  # lm-eval's own, where a task names no number
_LEAST_AHEAD, _MOST_AHEAD = 4, 32  # tokens that are guessed: a row gets longer by them
_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of a part of a character


class Decoder:
    """Text of tokens, and whether a text can have ended with one."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._pieces: dict[int, str] = {}

    def text(self, ids: array[int]) -> str:
        """Of all the ids."""
        return self._decode(ids.tolist())

    def may_end(self, token: int, end: str) -> bool:
        """Whether a text may have got `end` with this token; decoding the text itself for each takes far longer.

        It must have given the last character, or the last part of it. Tokenizers may drop spaces of a token alone.
        """
        if token not in self._pieces:
            self._pieces[token] = self._decode([token])
        piece = self._pieces[token]
        return not piece or end[-1] == " " or end[-1] in piece or _BROKEN in piece


class Text:
    """One text to continue.

    Args:
        ids: of the prompt; not empty.
        tokens: most new ones.
        until: strings of which the first ends the continuation, without itself.

    Attributes:
        ids: of the prompt and the continuation so far, 64 bits each.
        guess: of the ids behind them, for the pass under way.
    """

    def __init__(self, ids: Sequence[int], tokens: int, until: Sequence[str]) -> None:
        self.ids = array("q", ids)
        self.guess = array("q")
        self._begun = len(ids)
        self._end = len(ids) + tokens
        self._until = [end for end in until if end]
        self._ahead = _LEAST_AHEAD

    def guess_ahead(self) -> None:
        """Sets `guess`: what came after the last two tokens before, and again what came from there to here."""
        ids = np.frombuffer(self.ids, np.int64)
        before = np.flatnonzero((ids[:-2] == ids[-2:-1]) & (ids[1:-1] == ids[-1])) if len(ids) > 2 else ids[:0]
        again = self.ids[int(before[-1]) + 2 :] if len(before) else self.guess[:0]
        count = min(self._ahead, self._end - len(self.ids) - 1) if again else 0
        self.guess = array("q", (again[at % len(again)] for at in range(count)))

    def take(self, likeliest: Sequence[int], *, eos: int, decoder: Decoder) -> bool:
        """Appends tokens as far as the guess was right, and one more; True where the continuation has ended.

        Args:
            likeliest: the tokens after `ids` and after each token of the guess.
        """
        for right, (token, guessed) in enumerate(zip(likeliest, [*self.guess, None], strict=True)):
            if token == eos:
                return True
            self.ids.append(token)
            if len(self.ids) == self._end or self._has_ended(token, decoder):
                return True
            if token != guessed:
                self._ahead = min(2 * right + _LEAST_AHEAD, _MOST_AHEAD)
                break
        return False

    def _has_ended(self, token: int, decoder: Decoder) -> bool:
        possible = [end for end in self._until if decoder.may_end(token, end)]
        if not possible:
            return False
        found = decoder.text(self.ids[self._begun :])
        return any(end in found for end in possible)

    def answer(self, decoder: Decoder) -> str:
        """The continuation up to its end."""
        found = decoder.text(self.ids[self._begun :])
        for end in self._until:
            found = found.split(end)[0]
        return found


def text_of(ids: list[int], arguments: dict[str, Any], max_length: int, *, begin: list[int], eos: int) -> Text:
    """A text from the arguments of lm-eval's `generate_until`; the beginning of a prompt is left out where it and the
    new tokens do not fit.

    Args:
        begin: ids to stand before the prompt, whatever of it is left out; one at most.
        eos: stands for a prompt without tokens.

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
    return Text([*begin, *ids[lost:]] or [eos], tokens, [until] if isinstance(until, str) else until)


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
        calls: batches of the texts with these indices, each with its guess; wanted are the places of its last token
            and of its guess.
    """
    decoder, unfinished = Decoder(decode), set(range(len(texts)))
    while unfinished:
        for call, states in model.run(calls(sorted(unfinished))):
            likeliest, begin = model.likeliest(states), 0
            for index in call.wanted:
                end = begin + 1 + len(texts[index].guess)
                if texts[index].take(likeliest[begin:end], eos=eos, decoder=decoder):
                    unfinished.discard(index)
                begin = end
    return [text.answer(decoder) for text in texts]
