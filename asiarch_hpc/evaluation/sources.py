"""Files that stand in for the data sets of published tasks. Imports neither torch nor lm-eval.

One folder for each task, named as the task; in it JSON lines, `<split>.jsonl` for a single task and
`<data set's configuration>.jsonl` for each member of a group (`blimp/adjunct_island.jsonl`). The fields are those of
the data set that lm-eval's definition of the task names, so that this very definition reads them. Other forms are
understood as well: HellaSwag as lm-eval's definition makes it (`query`, `choices`, `label`), WSC273 as `prefix`,
`suffix`, `options`, `label`, and SQuAD's own JSON in a folder `squadv2` or `squad_v2*`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from asiarch_hpc.errors import ConfigError

Row = dict[str, Any]

# Tasks that are made here of held-out text and of recall formats: asiarch_hpc/evaluation/tasks.py.
OWN_TASKS = ("text_choice", "line_completion", "recall", "selective_copy")


def published(names: Iterable[str]) -> list[str]:
    """Those of the tasks that lm-eval defines."""
    return [name for name in names if name not in OWN_TASKS]


def check_sources(names: Sequence[str], data: str) -> None:
    """Says before a run what its evaluations would lack, as far as a look at files and packages tells.

    Raises:
        ConfigError: a folder of task files is given and lacks some of the tasks, or a task needs another package.
    """
    problems: dict[str, str] = {}
    for name in published(names):
        if name.startswith("tiny") and importlib.util.find_spec("tinyBenchmarks") is None:
            problems[name] = "needs the package tinyBenchmarks (github.com/felipemaiapolo/tinyBenchmarks)"
        elif data and not task_files(name, Path(data)):
            problems[name] = f"no {Path(data) / name}/*.jsonl"
    if problems:
        refuse(problems, names)


def refuse(problems: dict[str, str], names: Sequence[str]) -> None:
    """Raises ConfigError: which tasks cannot run, why, and which can. No design is at fault."""
    can = [name for name in names if name not in problems]
    listed = "; ".join(f"{name}: {why}" for name, why in problems.items())
    raise ConfigError(
        f"{len(problems)} of {len(names)} evaluation tasks cannot run: {listed}. Put files of their data into "
        "evaluation.data, or leave it empty where the Hugging Face hub or its cache can be reached, or evaluate those "
        f"that can run: evaluation.tasks=[{', '.join(can)}]"
    )


def task_files(name: str, data: Path) -> dict[str, Path]:
    """The files of a task or group by their stem; none if the folder lacks it."""
    if name == "squadv2":
        own = sorted(data.glob("squadv2/*.json")) or sorted(data.glob("squad_v2*/*.json"))
        return {"validation": own[0]} if own else {}
    return {path.stem: path for path in sorted((data / name).glob("*.jsonl"))}


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, with the fields of the task's data set.

    Raises:
        ConfigError: not JSON lines, or not SQuAD's JSON.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".json":
                return _squad(json.load(file))
            rows = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not readable as JSON lines ({error}); get the file again") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: expected JSON lines, one object each; get the file again")
    return [_winograd(row) if {"prefix", "suffix", "options"} <= set(row) else row for row in rows]


def _squad(content: Any) -> list[Row]:
    """The data set's rows from SQuAD's own file."""
    return [
        {
            "id": question["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {
                "text": [answer["text"] for answer in question["answers"]],
                "answer_start": [answer["answer_start"] for answer in question["answers"]],
            },
        }
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def _winograd(row: Row) -> Row:
    """WSC273's own fields. The pronoun is not in the file; `it` leaves the options as they are written there."""
    text = f"{row['prefix']} it {row['suffix']}"
    return {**row, "text": text, "pronoun": "it", "pronoun_loc": len(row["prefix"]) + 1}
