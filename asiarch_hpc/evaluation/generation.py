"""Greedy continuation of texts by a model without a cache: every pass computes each unfinished row again.

Since a pass gives the likeliest token after every place of a row, it judges a guess of the next tokens as well: those
which followed when the last two tokens stood together before. As many are taken as are the likeliest ones; what is
written is what one token a pass would write (arXiv 2211.17192; guesses from the text itself: arXiv 2304.04487).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation.scoring import Call, ServedModel

_DEFAULT_TOKENS = 256  # lm-eval's own, where a task names no number
_AHEAD = 32  # tokens that are guessed at most: a row gets longer by them


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
        self.ids = array("q")
        self.guess = array("q")
        self._begun = len(ids)
        self._end = len(ids) + tokens
        self._until = [end for end in until if end]
        # Tokens that an end just written can reach back over, each of a byte at least, and a broken character before.
        self._reach = max((len(end.encode()) for end in self._until), default=0) + 4
        self._followed: dict[tuple[int, ...], int] = {}  # pairs of tokens, by the place behind the last such pair
        for token in ids:
            self._append(token)

    def _append(self, token: int) -> None:
        if len(self.ids) > 1:
            self._followed[tuple(self.ids[-2:])] = len(self.ids)
        self.ids.append(token)

    def guess_ahead(self) -> None:
        """Sets `guess`: what came after the last two tokens before, and again what came from there to here."""
        begin = self._followed.get(tuple(self.ids[-2:]), len(self.ids))
        again = self.ids[begin:]
        count = min(_AHEAD, self._end - len(self.ids) - 1) if again else 0
        self.guess = array("q", (again[at % len(again)] for at in range(count)))

    def take(self, likeliest: Sequence[int], *, eos: int, decode: Callable[[Sequence[int]], str]) -> bool:
        """Appends tokens as far as the guess was right, and one more; True where the continuation has ended.

        Args:
            likeliest: the tokens after `ids` and after each token of the guess.
        """
        for token, guessed in zip(likeliest, [*self.guess, None], strict=True):
            if token == eos:
                return True
            self._append(token)
            if len(self.ids) == self._end or self._has_ended(decode):
                return True
            if token != guessed:
                break
        return False

    def _has_ended(self, decode: Callable[[Sequence[int]], str]) -> bool:
        if not self._until:
            return False
        last = decode(self.ids[max(self._begun, len(self.ids) - self._reach) :].tolist())
        return any(end in last for end in self._until)

    def answer(self, decode: Callable[[Sequence[int]], str]) -> str:
        """The continuation up to its end."""
        found = decode(self.ids[self._begun :].tolist())
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
    unfinished = set(range(len(texts)))
    while unfinished:
        for call, states in model.run(calls(sorted(unfinished))):
            likeliest, begin = model.likeliest(states), 0
            for index in call.wanted:
                end = begin + 1 + len(texts[index].guess)
                if texts[index].take(likeliest[begin:end], eos=eos, decode=decode):
                    unfinished.discard(index)
                begin = end
    return [text.answer(decode) for text in texts]
