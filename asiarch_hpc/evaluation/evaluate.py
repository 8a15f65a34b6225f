"""Scores trained weights, or refuses to: design.md, truth rules 1 and 2."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from asiarch_hpc.config import EvaluationConfig
from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation.scoring import Call, ServedModel
from asiarch_hpc.evaluation.tasks import ROLLING, build_tasks, chance_levels
from asiarch_hpc.records import Evaluation, TaskScore

if TYPE_CHECKING:  # importing it imports lm-eval, which must wait until the models' processes are forked
    from asiarch_hpc.evaluation.model import Tokenizer

# Held-out documents are taken in pages of this many characters, one page of each in turn, so that the text measured
# comes from as many documents as there are.
_PAGE = 2000


def evaluate(
    *,
    experiment: str,
    trial: str,
    attempt: str,
    weights: Path,
    expected_sha256: str,
    serve: Callable[[bytes | None], AbstractContextManager[ServedModel]],
    tokenizer: Tokenizer,
    vocab: int,
    heldout_texts: Callable[[], Sequence[str]],
    config: EvaluationConfig,
    task_folder: Path,
    max_length: int,
    clock: Callable[[], float],
) -> Evaluation:
    """Measures held-out loss, bits per byte and task accuracies of the weights in one file.

    The file is read once; those bytes are hashed, compared, and handed to the model's process. `loss` is nats per
    token of the held-out text, `bits_per_byte` the same nats / (ln 2 · UTF-8 bytes). `benchmark` is the plain mean
    of the tasks' accuracies (likeliest choice by summed log-likelihood, not normalised by length). The untrained
    values come from freshly initialised weights on the first part of the same text.

    Args:
        expected_sha256: of the checkpoint that training wrote; other bytes are refused.
        serve: starts a model's process from a weight file's bytes, or with fresh weights for None; the final norm
            and the head stay in this process.
        heldout_texts: gives the held-out documents in a fixed order; called after the models' processes were
            forked, so that these never hold the text or the answers.
        task_folder: where the question files are kept between evaluations.
        max_length: longest input in tokens, normally the training length.
        clock: seconds, for `Evaluation.seconds`.

    Raises:
        EvaluationError: other weights than expected; loss not `config.min_margin` below uniform and untrained;
            predictions that depend on later tokens or other rows; absurd numbers; a model's process that fails.
    """
    started = clock()
    if not config.tasks:
        raise EvaluationError("evaluation.tasks is empty; name at least one task, the benchmark is their mean")
    content, sha256 = _read(weights, expected_sha256)
    with serve(content) as trained, serve(None) as fresh:
        del content
        texts = heldout_texts()
        before, after, tasks = _measure_both(trained, fresh, texts, tokenizer, config, task_folder, max_length, vocab)
    return Evaluation(
        experiment=experiment,
        trial=trial,
        attempt=attempt,
        weights_sha256=sha256,
        loss=after.loss,
        bits_per_byte=after.bits_per_byte,
        untrained_loss=before.loss,
        untrained_bits_per_byte=before.bits_per_byte,
        uniform_loss=math.log(vocab),
        benchmark=sum(score.accuracy for score in tasks.values()) / len(tasks),
        tasks=tasks,
        seconds=clock() - started,
        harness=f"lm-eval {importlib.metadata.version('lm-eval')}",
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """Rolling likelihood of the held-out text, and what lm-eval reported for every task."""

    loss: float
    bits_per_byte: float
    results: Mapping[str, Any]


def _measure_both(
    trained: ServedModel,
    fresh: ServedModel,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    config: EvaluationConfig,
    task_folder: Path,
    max_length: int,
    vocab: int,
) -> tuple[_Measured, _Measured, dict[str, TaskScore]]:
    """The fresh model on the first part of the text; the trained one on all of it and on the tasks."""
    text = _measured_text(texts, tokenizer, config.heldout_tokens)
    part = _measured_text(texts, tokenizer, min(config.untrained_tokens, config.heldout_tokens))
    folder = build_tasks(
        texts, names=config.tasks, questions=config.questions, seed=config.seed, folder=task_folder, rolling=text
    )
    part_folder = build_tasks((), names=(), questions=0, seed=config.seed, folder=task_folder, rolling=part)
    measure = functools.partial(_measure, tokenizer=tokenizer, max_length=max_length, config=config)
    before = measure(fresh, (), part_folder, part)
    mixed = measure(ServedModel(fresh.states, trained.logits, trained.rows), (), part_folder, part)
    _check_causal(trained, text, tokenizer, max_length, config)
    after = measure(trained, config.tasks, folder, text)
    limits = {
        "a uniform guess": math.log(vocab),
        "the untrained model": before.loss,
        "untrained blocks under the trained head": mixed.loss,  # as if the blocks' weights were never loaded
    }
    _check_trained(after.loss, limits, config.min_margin)
    tasks = _task_scores(after.results, config.tasks, config.questions, chance_levels(folder, config.tasks))
    return before, after, tasks


def _measure(
    served: ServedModel,
    names: Sequence[str],
    folder: Path,
    text: Sequence[str],
    *,
    tokenizer: Tokenizer,
    max_length: int,
    config: EvaluationConfig,
) -> _Measured:
    from asiarch_hpc.evaluation.harness import run_tasks  # lm-eval, only after the forks
    from asiarch_hpc.evaluation.model import HarnessModel

    model = HarnessModel(served, tokenizer=tokenizer, max_length=max_length, batch_size=config.batch_size)
    results = run_tasks(model, folder, [*names, ROLLING])
    bits = _number(results, ROLLING, "bits_per_byte,none")
    if not (bits > 0):
        raise EvaluationError(f"held-out bits per byte are {bits}, expected a positive number: the model is not scored")
    nats = bits * math.log(2) * sum(len(document.encode()) for document in text)
    return _Measured(nats / model.scored_tokens, bits, results)


def _read(weights: Path, expected_sha256: str) -> tuple[bytes, str]:
    """The file's bytes, read once, and their hash."""
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{weights}: the trained weights cannot be read ({error}); train again") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != expected_sha256:
        raise EvaluationError(
            f"{weights}: sha256 {sha256[:16]}…, but training recorded {expected_sha256[:16]}…; these are not the "
            "trained weights, so they get no score: train again"
        )
    return content, sha256


def _measured_text(texts: Sequence[str], tokenizer: Tokenizer, budget: int) -> list[str]:
    """Beginnings of the documents, evenly grown until together they have about `budget` tokens."""
    pages = [0] * len(texts)
    tokens, page = 0, 0
    while tokens < budget:
        before = tokens
        for index, text in enumerate(texts):
            piece = text[page * _PAGE : (page + 1) * _PAGE]
            if piece and tokens < budget:
                tokens += len(tokenizer.encode(piece))
                pages[index] = page + 1
        if tokens == before:  # every document is used up
            break
        page += 1
    found = [text[: count * _PAGE] for text, count in zip(texts, pages, strict=True) if count]
    if not tokens:
        raise EvaluationError(
            f"{len(texts)} held-out documents hold no text, expected about {budget} tokens; "
            "raise data.heldout_fraction or give more documents"
        )
    return found


def _check_trained(loss: float, limits: Mapping[str, float], margin: float) -> None:
    for name, limit in limits.items():
        if not (loss < (1 - margin) * limit):
            raise EvaluationError(
                f"held-out loss {loss:.4f} nats per token is not {margin:.0%} below that of {name} ({limit:.4f}): "
                "the weights are untrained or learned nothing, so they get no score; train longer, or lower "
                "evaluation.min_margin if the scale is meant to be that short"
            )


def _check_causal(
    model: ServedModel, documents: Sequence[str], tokenizer: Tokenizer, length: int, config: EvaluationConfig
) -> None:
    """Refuses trained weights whose predictions change when later tokens, or the order of the rows, change.

    The gate tests causality before training; a leak may open in training, from a gate that starts at zero. Later
    tokens are taken from the next row, so that both inputs look like text to the model. Compared is the
    log-probability of the original next token at each place before its row's cut; at the last of them that token
    itself was replaced, so that a look one token ahead shows.
    """
    ids = [token for text in documents for token in (tokenizer.eos, *tokenizer.encode(text))]
    rows = min(config.batch_size, len(ids) // length)
    if rows < 2:
        return  # too little text for two full rows
    plain = torch.tensor(ids[: rows * length]).view(rows, length)
    cuts = torch.linspace(1, length - 1, rows).long()
    before = torch.arange(length)[None, :] < cuts[:, None]
    spliced = torch.where(before, plain, plain.roll(1, 0))
    row, place = before[:, :-1].nonzero(as_tuple=True)
    calls = [Call(plain, row * length + place), Call(spliced.flip(0), (rows - 1 - row) * length + place)]
    first, second = (model.score(states, plain[row, place + 1])[0] for _, states in model.run(calls))
    change = float((first - second).abs().max())
    if not (change <= config.causality_tolerance):
        raise EvaluationError(
            f"the trained model's predictions change by {change:.3g} nats when only later tokens and the order of "
            f"the rows change, expected at most {config.causality_tolerance:g}: it sees the answers, mixes rows or is "
            "random in evaluation, so it gets no score; the design must be causal and deterministic"
        )


def _task_scores(
    results: Mapping[str, Any], names: Sequence[str], questions: int, chance: Mapping[str, float]
) -> dict[str, TaskScore]:
    scores: dict[str, TaskScore] = {}
    for name in names:
        accuracy = _number(results, name, "acc,none")
        count = int(_number(results, name, "sample_len"))
        if not (0 <= accuracy <= 1) or count != questions:
            raise EvaluationError(
                f"task {name}: accuracy {accuracy} of {count} questions, expected a number from 0 to 1 of {questions}"
            )
        stderr = math.sqrt(accuracy * (1 - accuracy) / count)
        scores[name] = TaskScore(accuracy=accuracy, stderr=stderr, chance=chance[name], questions=count)
    return scores


def _number(results: Mapping[str, Any], task: str, key: str) -> float:
    value = results.get(task, {}).get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise EvaluationError(f"task {task}: {key} is {value!r}, expected a finite number: the model is not scored")
    return float(value)
