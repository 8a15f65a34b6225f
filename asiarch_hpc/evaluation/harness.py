"""lm-eval's view of a model that is nothing but a function from token ids to logits.

Importing this module imports lm-eval (about a second, and threads): start the model's process first.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import datasets
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate as run_harness
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from omegaconf import OmegaConf
from torch import Tensor

from asiarch_hpc.errors import EvaluationError

Logits = Callable[[Tensor], Tensor]


class Tokenizer(Protocol):
    """Text to token ids and back; `eos` ends documents and stands before the first token."""

    @property
    def eos(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Scores text for lm-eval with `logits`; all arithmetic from the logits on happens here, in fp32.

    Every sequence starts with `tokenizer.eos`. Contexts that do not fit lose their beginning. Rolling likelihood
    uses lm-eval's own windows of `max_length`, each token scored exactly once. Rows are sorted by length and padded
    on the right, which a causal model cannot see; equal inputs are computed once.

    Args:
        logits: `[batch, length]` int64 ids to `[batch, length, vocab]` logits.
        max_length: the longest input, in tokens.
        batch_size: rows of `max_length` in one call; shorter rows are packed to the same number of tokens.

    Attributes:
        scored_tokens: tokens scored by rolling likelihood so far.
    """

    backend = "causal"

    def __init__(self, logits: Logits, *, tokenizer: Tokenizer, max_length: int, batch_size: int) -> None:
        super().__init__()
        self._logits = logits
        self._codec = tokenizer
        self._max_length = max_length
        self._call_tokens = batch_size * max_length
        self._encoded: dict[str, list[int]] = {}
        self.scored_tokens = 0

    @property
    def eot_token_id(self) -> int:
        return self._codec.eos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if string not in self._encoded:  # the choices of a question share their context
            self._encoded[string] = self._codec.encode(string)
        return self._encoded[string]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        self._encoded.clear()
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            ids = self._codec.encode(request.args[0])
            for window in get_rolling_token_windows(ids, self._codec.eos, self._max_length, context_len=1):
                windows.append(make_disjoint_window(window))
                owners.append(index)
            self.scored_tokens += len(ids)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._score(windows), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        raise EvaluationError(
            "a task asks for generated text; local tasks score given continuations only, "
            "use output_type multiple_choice, loglikelihood or loglikelihood_rolling"
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        eos = [self._codec.eos]
        pairs: list[tuple[list[int], list[int]]] = []
        for (_, continuation), context, ids in requests:
            if not ids:
                raise EvaluationError(
                    f"continuation {continuation!r} adds no token to its context; begin it with a space or line break"
                )
            pairs.append((context if context[:1] == eos else eos + context, ids))
        return self._score(pairs)

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Natural-log likelihood of each continuation after its context, and whether every token was the likeliest."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for index, (context, continuation) in enumerate(pairs):
            if len(continuation) > self._max_length:
                raise EvaluationError(
                    f"a continuation has {len(continuation)} tokens, the model reads {self._max_length}; "
                    "use shorter questions or a longer scale.length"
                )
            rows.setdefault(tuple((context + continuation)[-self._max_length - 1 : -1]), []).append(index)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for batch in self._batches(sorted(rows, key=lambda row: (-len(row), row))):
            wanted = [(place, index) for place, row in enumerate(batch) for index in rows[row]]
            scored = self._score_batch(batch, [(place, pairs[index][1]) for place, index in wanted])
            for (_, index), result in zip(wanted, scored, strict=True):
                results[index] = result
        return results

    def _batches(self, rows: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
        start = 0
        while start < len(rows):
            count = max(1, self._call_tokens // len(rows[start]))
            yield rows[start : start + count]
            start += count

    def _score_batch(
        self, batch: Sequence[tuple[int, ...]], wanted: Sequence[tuple[int, list[int]]]
    ) -> list[tuple[float, bool]]:
        length = len(batch[0])
        ids = torch.full((len(batch), length), self._codec.eos, dtype=torch.int64)
        for place, row in enumerate(batch):
            ids[place, : len(row)] = torch.tensor(row)
        logits = self._logits(ids)
        places: list[int] = []
        targets: list[int] = []
        for place, continuation in wanted:
            end = place * length + len(batch[place])
            places += range(end - len(continuation), end)
            targets += continuation
        # The selection is a copy: nobody else can change the numbers between the check and the sum.
        chosen = logits.reshape(len(batch) * length, -1)[torch.tensor(places)].float()
        wanted_ids = torch.tensor(targets)[:, None]
        likeliest = chosen.gather(1, wanted_ids)[:, 0] == chosen.amax(-1)
        values = torch.log_softmax(chosen, -1).gather(1, wanted_ids)[:, 0].double()
        if not bool(torch.isfinite(values).all()):
            raise EvaluationError("the model gave log-likelihoods that are not finite numbers; it cannot be scored")
        sizes = [len(continuation) for _, continuation in wanted]
        sums = [part.sum().item() for part in torch.split(values, sizes)]
        greedy = [bool(part.all()) for part in torch.split(likeliest, sizes)]
        return list(zip(sums, greedy, strict=True))


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
