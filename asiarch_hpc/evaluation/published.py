"""lm-eval's own task definitions, on their own data sets or on files in a folder.

Nothing of a task is written down here: prompts, choices and metrics come from the definition that lm-eval brings, and
only where its rows come from is replaced. Importing this module imports lm-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from asiarch_hpc.errors import ConfigError
from asiarch_hpc.evaluation.documents import reading_once
from asiarch_hpc.evaluation.sources import Row, read_rows, refuse, task_files
from asiarch_hpc.evaluation.squad import offline

_LIBRARY = Path(lm_eval.tasks.__file__).parent
# Where lm-eval keeps a definition, if not in a folder of the task's name: its index of all tasks takes seconds.
_FOLDERS = {
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "boolq": "super_glue/boolq",
    "inverse_scaling_mc": "inverse_scaling",
    "lambada_openai": "lambada",
    "mnli_mismatch": "glue/mnli",
    "social_iqa": "siqa",
    "tinyGSM8k": "tinyBenchmarks",
    "tinyTruthfulQA": "tinyBenchmarks",
    **dict.fromkeys(("qa4mre_2011", "qa4mre_2012", "qa4mre_2013"), "qa4mre"),
    **{name: f"glue/{name}" for name in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli")},
}
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def load_published(names: Sequence[str], data: str) -> dict[str, list[Task]]:
    """The tasks by name; a group or tag has several.

    Args:
        data: folder of task files (asiarch_hpc/evaluation/sources.py); empty: each definition's own data set, from
            the Hugging Face hub or its cache.

    Raises:
        ConfigError: a task is unknown to lm-eval, or its data are not there; the message says which can run.
    """
    found: dict[str, list[Task]] = {}
    problems: dict[str, str] = {}
    for name in names:
        try:
            files = task_files(name, Path(data)) if data else None
            found[name] = [_build(definition, files) for definition in _definitions(name)]
        except (OSError, ValueError, KeyError, ImportError) as error:
            problems[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
            if isinstance(error, ConnectionError):  # the next ones need not wait for an answer
                datasets.config.HF_HUB_OFFLINE = True
    if problems:
        refuse(problems, names)
    return found


def task_on_rows(config: dict[str, Any], splits: Mapping[str, Sequence[Row]]) -> Task:
    """A task whose data set is these rows; `config` is that of an lm-eval definition with functions resolved."""
    base = reading_once(config.pop("class", ConfigurableTask))
    rows = datasets.DatasetDict({name: datasets.Dataset.from_list(list(rows)) for name, rows in splits.items()})

    class OnRows(base):  # type: ignore[misc, valid-type]
        def download(self, *args: Any, **options: Any) -> None:
            self.dataset = rows

        def has_training_docs(self) -> bool:
            return super().has_training_docs() and (self.config.training_split or "train") in rows

        def fewshot_docs(self) -> Any:
            # lm-eval makes a list of all documents, also where no prompt gets an example.
            return super().fewshot_docs() if self.config.num_fewshot else []

    return OnRows(config=config)


def _definitions(name: str) -> list[dict[str, Any]]:
    """Definitions of a task, or of all members of a group or tag."""
    folder = _LIBRARY / _FOLDERS.get(name, name)
    index = TaskManager(include_path=folder, include_defaults=False).task_index if folder.is_dir() else {}
    index = index if name in index else TaskManager().task_index
    if name not in index:
        raise ConfigError("lm-eval has no task of this name")
    entry = index[name]
    members = [name]
    if entry.kind.name == "TAG":
        members = sorted(entry.tags)
    if entry.kind.name == "GROUP":
        members = list(load_yaml(entry.yaml_path, resolve_func=False)["task"])
    return [load_yaml(index[member].yaml_path, resolve_func=True) for member in members]


def _build(definition: dict[str, Any], files: Mapping[str, Path] | None) -> Task:
    config = {key: value for key, value in definition.items() if key not in ("tag", "group", "task_list")}
    if config["task"] == "squadv2":
        config["class"] = offline(config["class"])
    if files is None:
        task = reading_once(config.pop("class", ConfigurableTask))(config=config)
    else:
        splits = _splits(config, files)
        if config["task"] == "hellaswag" and "ctx_a" not in next(iter(splits.values()))[0]:
            config["process_docs"] = None  # the rows are what it makes
        task = task_on_rows(config, splits)
    task.config.task = definition["task"]  # a definition by a class leaves it out
    return task


def _splits(config: dict[str, Any], files: Mapping[str, Path]) -> dict[str, list[Row]]:
    """Rows of each split that there is a file for; the configuration forgets the others."""
    evaluated = config.get("test_split") or config.get("validation_split")
    for stem in (str(config.get("dataset_name")), config["task"]):
        if evaluated and stem in files:  # a member of a group
            files = {evaluated: files[stem]}
    if evaluated and evaluated not in files:
        raise ConfigError(f"no file {evaluated}.jsonl (found {sorted(files)})")
    if not files:
        raise ConfigError("no files")
    if config.get("num_fewshot") and "train" not in files:
        raise ConfigError("no file train.jsonl, which its examples are taken from")
    for key in _SPLITS:
        if config.get(key) not in files:
            config.pop(key, None)
    return {split: read_rows(path) for split, path in files.items()}
