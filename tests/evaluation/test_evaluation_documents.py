"""Tasks that read their documents once give lm-eval what its own would."""

from __future__ import annotations

from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from asiarch_hpc.evaluation.documents import reading_once

ROWS = [{"question": f"which is {n}?", "choices": ["one", f"{n}"], "answer": n % 2} for n in range(5)]
TEMPLATED = "{{[choices[0], question]}}"


class OnRows(ConfigurableTask):  # type: ignore[misc]
    rendered = 0

    def download(self, *args: Any, **options: Any) -> None:
        self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)})

    def doc_to_choice(self, doc: Any, doc_to_choice: Any = None) -> Any:
        OnRows.rendered += 1
        return super().doc_to_choice(doc, doc_to_choice)


def config(**changes: Any) -> dict[str, Any]:
    return {
        "task": "toy",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_choice": TEMPLATED,
        "doc_to_target": "answer",
        **changes,
    }


def reversed_rows(rows: datasets.Dataset) -> datasets.Dataset:
    return rows.select(range(len(rows) - 1, -1, -1)).map(lambda row: {"question": row["question"].upper()})


def test_documents_are_those_of_the_table() -> None:
    for changes in ({}, {"process_docs": reversed_rows}):
        task, plain = reading_once(OnRows)(config=config(**changes)), OnRows(config=config(**changes))
        assert list(task.eval_docs) == list(plain.eval_docs)
        assert [doc for _, doc in task.doc_iterator(limit=3)] == list(plain.eval_docs)[:3]
        assert task.eval_docs[0] is task.eval_docs[0]


def test_choices_are_made_once_a_document() -> None:
    task = reading_once(OnRows)(config=config())
    OnRows.rendered = 0
    for _ in range(3):
        for doc in task.eval_docs:
            found = task.doc_to_choice(doc)
            assert found == ["one", doc["question"]]
            found.clear()  # the caller's
    assert OnRows.rendered == len(ROWS)
    assert task.doc_to_choice(task.eval_docs[0], "choices") == ["one", "0"]  # another template
    assert task.doc_to_choice(dict(task.eval_docs[0], question="other")) == ["one", "other"]
