"""Runs tasks through lm-eval's task manager and evaluator.

Importing this module imports lm-eval (about a second, and threads): start the model's process first.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import datasets
from lm_eval.evaluator import evaluate as run_harness
from lm_eval.tasks import TaskManager
from omegaconf import OmegaConf

from asiarch_hpc.evaluation.model import HarnessModel


def run_tasks(model: HarnessModel, folder: Path, names: Sequence[str], *, limit: int | None = None) -> dict[str, Any]:
    """Runs local tasks through lm-eval's task manager and evaluator; returns its results by task.

    Offline and silent: no built-in task is indexed, data sets are prepared in a temporary folder, progress bars are
    discarded, standard errors by bootstrap are left out.

    Args:
        folder: what `build_tasks` returned.
        names: tasks to run.
        limit: questions or documents of each task; all of them when None.
    """
    quiet = logging.getLogger("lm_eval")
    level = quiet.level
    bars = datasets.are_progress_bars_disabled()
    with tempfile.TemporaryDirectory(prefix="asiarch-eval-") as cache, contextlib.redirect_stderr(io.StringIO()):
        quiet.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        try:
            manager = TaskManager(include_defaults=False)
            tasks = manager.load([_task_spec(folder, name, cache) for name in names])
            report = run_harness(model, tasks, limit=limit, bootstrap_iters=0, log_samples=False)
        finally:
            quiet.setLevel(level)
            if not bars:
                datasets.enable_progress_bars()
    results: dict[str, Any] = report["results"]
    return results


def _task_spec(folder: Path, name: str, cache: str) -> dict[str, Any]:
    """The task's YAML, with its data file's full path and a cache folder outside the user's home."""
    spec = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml")))
    spec["dataset_kwargs"] = {"data_files": {"test": str(folder.resolve() / f"{name}.jsonl")}, "cache_dir": cache}
    return spec
