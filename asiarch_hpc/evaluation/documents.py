"""Documents of lm-eval's tasks, read once. Importing this module imports lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets


def reading_once(base: type[Any]) -> type[Any]:
    """A class of lm-eval's tasks that reads a document once, and makes its choices once.

    lm-eval itself takes the documents that it asks out of their table twice, and renders the choices of each three
    times: with BLiMP's 33,500 among them, a third of what an evaluation costs beside the model.
    """

    class ReadingOnce(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            self._documents: Sequence[Any] | None = None
            self._choices: dict[int, tuple[Any, list[str]]] = {}
            super().__init__(*args, **options)  # asks for a table
            found = self.task_docs
            self._documents = found.to_list() if isinstance(found, datasets.Dataset) else found

        @property
        def eval_docs(self) -> Any:
            return super().eval_docs if self._documents is None else self._documents

        def doc_to_choice(self, doc: Any, *others: Any, **named: Any) -> Any:
            if others or named:
                return super().doc_to_choice(doc, *others, **named)
            known = self._choices.get(id(doc))
            if known is None or known[0] is not doc:
                known = self._choices[id(doc)] = (doc, super().doc_to_choice(doc))
            return list(known[1])

    return ReadingOnce
