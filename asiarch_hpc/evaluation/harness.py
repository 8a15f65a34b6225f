"""Runs tasks through lm-eval's evaluator.

Importing this module imports lm-eval (about a second, and threads): start the model's process first.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import lm_eval.utils
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate as run_harness
from omegaconf import OmegaConf

from asiarch_hpc.evaluation.model import HarnessModel
from asiarch_hpc.evaluation.published import load_published, task_on_rows
from asiarch_hpc.evaluation.scores import Measured
from asiarch_hpc.evaluation.sources import read_rows


def own_tasks(folder: Path, names: Sequence[str]) -> dict[str, list[Task]]:
    """Tasks that `asiarch_hpc.evaluation.tasks.build_tasks` wrote."""
    found: dict[str, list[Task]] = {}
    for name in names:
        config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml")))
        found[name] = [task_on_rows(config, {"test": read_rows(folder / f"{name}.jsonl")})]
    return found


def published_tasks(names: Sequence[str], data: str) -> dict[str, list[Task]]:
    """Tasks that lm-eval defines; see `load_published`."""
    with _quiet():
        return load_published(names, data)


def run_tasks(
    model: HarnessModel, tasks: Mapping[str, Sequence[Task]], *, limit: int | None = None
) -> dict[str, list[Measured]]:
    """Runs tasks through lm-eval's evaluator, all of them in one pass over the model; returns what it reports.

    Silent, and without standard errors by bootstrap, which take long and say less than the binomial ones.

    Args:
        tasks: by name; a group has several.
        limit: most documents of a task or of each member of a group, the first ones; None: all.
    """
    members = {task.config.task: task for group in tasks.values() for task in group}
    if not members:
        return {}
    with _quiet(), _templates_compiled_once():
        report = run_harness(model, {"tasks": members}, limit=limit, bootstrap_iters=0, log_samples=False)
    results: dict[str, Any] = report["results"]
    return {
        name: [
            Measured(results[task.config.task], int(results[task.config.task]["sample_len"]), _chance(task))
            for task in group
        ]
        for name, group in tasks.items()
    }


def _chance(task: Task) -> float:
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    choices = Counter(instance.doc_id for instance in task.instances)
    return sum(1 / count for count in choices.values()) / len(choices)


@contextlib.contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """lm-eval compiles the Jinja templates of a task again for every document, which takes most of its time."""
    environment = lm_eval.utils.env
    environment.from_string = functools.cache(environment.from_string)
    try:
        yield
    finally:
        del environment.from_string  # the class's own again


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, no messages, nothing on standard error."""
    log = logging.getLogger("lm_eval")
    level, bars = log.level, datasets.are_progress_bars_disabled()
    with contextlib.redirect_stderr(io.StringIO()):
        log.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            log.setLevel(level)
            if not bars:
                datasets.enable_progress_bars()
