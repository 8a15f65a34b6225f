"""SQuAD v2's exact match and F1 (arXiv 1806.03822), which lm-eval fetches from the Hugging Face hub as a program."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def offline(task: type[Any]) -> type[Any]:
    """lm-eval's class for SQuAD v2 with these two metrics instead of its eight; shares, not percentages."""

    class OfflineSquad(task):  # type: ignore[misc]
        def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
            answers = doc["answers"]["text"] or [""]  # none: it cannot be answered
            return {
                "exact": max(float(_words(results[0]) == _words(answer)) for answer in answers),
                "f1": max(overlap(results[0], answer) for answer in answers),
            }

        def aggregation(self) -> dict[str, Callable[[Sequence[float]], float]]:
            return {"exact": _mean, "f1": _mean}

        def higher_is_better(self) -> dict[str, bool]:
            return {"exact": True, "f1": True}

    return OfflineSquad


def overlap(given: str, answer: str) -> float:
    """F1 of the words of both, as multisets; of two empty ones, 1."""
    ours, theirs = _words(given), _words(answer)
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
