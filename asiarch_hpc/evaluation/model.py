"""lm-eval's view of a model: text in, log-likelihoods out.

Importing this module imports lm-eval (about a second, and threads): start the model's process first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation.generation import continue_texts, text_of
from asiarch_hpc.evaluation.scoring import Call, ServedModel

Pair = tuple[list[int], list[int]]  # ids of a context, and of the continuation to score
_Row = TypeVar("_Row", bound=Sequence[int])


class Tokenizer(Protocol):
    """Text to token ids and back; `eos` ends documents and stands before the first token."""

    @property
    def eos(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Scores text for lm-eval; all arithmetic from the head's logits on happens in this process, in fp32.

    Contexts that do not fit lose their beginning, but for a first `eos` that this class puts there. Rolling
    likelihood uses lm-eval's own windows of `max_length`, each token scored exactly once. Rows are sorted by length
    and padded on the right, which a causal model cannot see. No row is computed that another one begins with: the
    choices of a question that are one token each need one row, longer ones share their common beginning where one
    begins the other.

    Args:
        max_length: the longest input, in tokens.
        batch_size: rows of `max_length` in one call; shorter rows are packed to the same number of tokens.
        begin_with_eos: every sequence starts with `tokenizer.eos`, as the rows of the training do, also one that
            begins in mid-document because it lost its beginning or is a window of rolling likelihood; else only one
            without a context does, as in lm-eval's class for Hugging Face models.
        threads: CPU threads that text is turned into tokens with.

    Attributes:
        scored_tokens: tokens scored by rolling likelihood so far.
    """

    backend = "causal"

    def __init__(
        self,
        model: ServedModel,
        *,
        tokenizer: Tokenizer,
        max_length: int,
        batch_size: int,
        begin_with_eos: bool = True,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self._model = model
        self._codec = tokenizer
        self._max_length = max_length
        self._call_tokens = batch_size * max_length
        self._pad_multiple = model.pad_multiple
        self._begin = [tokenizer.eos] if begin_with_eos else []
        self._threads = threads
        self._encoded: dict[str, list[int]] = {}
        self.scored_tokens = 0

    @property
    def eot_token_id(self) -> int:
        return self._codec.eos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._encoded[string] if string in self._encoded else self._codec.encode(string)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._codec.encode_batch(texts, self._threads)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        texts: set[str] = set()
        for context, continuation in (request.args for request in requests):
            texts |= {context + continuation, context.rstrip()}  # what `tok_encode` will be asked for
        ordered = sorted(texts)
        self._encoded = dict(zip(ordered, self._encode(ordered), strict=True))
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        self._encoded = {}
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        windows: list[Pair] = []
        owners: list[int] = []
        for index, ids in enumerate(self._encode([request.args[0] for request in requests])):
            for window in get_rolling_token_windows(ids, self._codec.eos, self._max_length, context_len=1):
                context, continuation = make_disjoint_window(window)
                windows.append((self._begin + context[len(self._begin) :], continuation))
                owners.append(index)
            self.scored_tokens += len(ids)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._score(windows), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        prompts = self._encode([request.args[0] for request in requests])
        eos = self._codec.eos
        texts = [
            text_of(ids, request.args[1], self._max_length, begin=self._begin, eos=eos)
            for ids, request in zip(prompts, requests, strict=True)
        ]

        def calls(indices: Iterable[int]) -> Iterator[Call]:
            for index in indices:
                texts[index].guess_ahead()
            rows = [(texts[index].ids + texts[index].guess, index) for index in indices]
            rows.sort(key=lambda row: -len(row[0]))
            start = 0
            for batch in self._batches([ids for ids, _ in rows]):
                ids, wanted = self._padded(batch), [index for _, index in rows[start : start + len(batch)]]
                ends = [at * ids.shape[1] + len(row) for at, row in enumerate(batch)]
                begins = [end - len(texts[index].guess) - 1 for end, index in zip(ends, wanted, strict=True)]
                places = [place for span in zip(begins, ends, strict=True) for place in range(*span)]
                yield Call(ids, torch.tensor(places), wanted)
                start += len(batch)

        return continue_texts(self._model, texts, calls=calls, decode=self._codec.decode, eos=eos)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs: list[Pair] = []
        for (_, continuation), context, ids in requests:
            if not ids:
                raise EvaluationError(
                    f"continuation {continuation!r} adds no token to its context; begin it with a space or line break"
                )
            begun = context[:1] == [self._codec.eos]
            pairs.append((context if begun else self._begin + context, ids))
        return self._score(pairs)

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Natural-log likelihood of each continuation after its context, and whether every token was the likeliest."""
        inputs = [self._input(context, continuation) for context, continuation in pairs]
        rows = _without_beginnings(inputs)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for call, states in self._model.run(self._calls(rows, inputs, pairs)):
            targets = torch.tensor([token for index in call.wanted for token in pairs[index][1]])
            values, likeliest = self._model.score(states, targets)
            sizes = [len(pairs[index][1]) for index in call.wanted]
            parts = zip(call.wanted, torch.split(values, sizes), torch.split(likeliest, sizes), strict=True)
            for index, value, greedy in parts:
                results[index] = (value.sum().item(), bool(greedy.all()))
        return results

    def _input(self, context: list[int], continuation: list[int]) -> tuple[int, ...]:
        """The ids that predict the continuation: all but its last, as many as fit."""
        if len(continuation) > self._max_length:
            raise EvaluationError(
                f"a continuation has {len(continuation)} tokens, the model reads {self._max_length}; "
                "use shorter questions or a longer scale.length"
            )
        ids = (context + continuation)[:-1]
        if (lost := len(ids) - self._max_length) > 0:
            ids = self._begin + ids[lost + len(self._begin) :]
        return tuple(ids)

    def _calls(
        self,
        rows: dict[tuple[int, ...], list[int]],
        inputs: Sequence[tuple[int, ...]],
        pairs: Sequence[Pair],
    ) -> Iterator[Call]:
        """Batches of rows, the longest first; each call wants the pairs that it answers."""
        for batch in self._batches(sorted(rows, key=lambda row: (-len(row), row))):
            ids = self._padded(batch)
            wanted: list[int] = []
            places: list[int] = []
            for at, row in enumerate(batch):
                for index in rows[row]:
                    end = at * ids.shape[1] + len(inputs[index])
                    places += range(end - len(pairs[index][1]), end)
                    wanted.append(index)
            yield Call(ids, torch.tensor(places), wanted)

    def _batches(self, rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
        start = 0
        while start < len(rows):
            count = max(1, self._call_tokens // self._padded_length(len(rows[start])))
            yield rows[start : start + count]
            start += count

    def _padded_length(self, length: int) -> int:
        return min(-(-length // self._pad_multiple) * self._pad_multiple, self._max_length)

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        ids = np.full((len(rows), self._padded_length(max(map(len, rows)))), self._codec.eos, np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
        return torch.from_numpy(ids)


def _without_beginnings(inputs: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """The inputs that begin no other one, each with the indices of all inputs that it begins with.

    In lexicographic order an input that begins any other begins its successor.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for index, ids in enumerate(inputs):
        places.setdefault(ids, []).append(index)
    kept: dict[tuple[int, ...], list[int]] = {}
    longest: tuple[int, ...] = ()
    for ids in sorted(places, reverse=True):
        if not kept or longest[: len(ids)] != ids:
            longest = ids
        kept.setdefault(longest, []).extend(places[ids])
    return kept
