"""Scores trained weights, or refuses to: design.md, truth rules 1 and 2."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from asiarch_hpc.config import EvaluationConfig
from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation.scores import averages, benchmark, number, task_scores
from asiarch_hpc.evaluation.scoring import Call, ServedModel
from asiarch_hpc.evaluation.sources import OWN_TASKS, published
from asiarch_hpc.evaluation.tasks import ROLLING, build_tasks
from asiarch_hpc.processes import torch_threads
from asiarch_hpc.records import Evaluation, TaskScore

if TYPE_CHECKING:  # importing it imports lm-eval, which must wait until the models' processes are forked
    from asiarch_hpc.evaluation.model import HarnessModel, Tokenizer

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
    threads: int = 1,
) -> Evaluation:
    """Measures held-out loss, bits per byte and task accuracies of the weights in one file.

    The file is read once; those bytes are hashed, compared, and handed to the model's process. `loss` is nats per
    token of the held-out text, `bits_per_byte` the same nats / (ln 2 · UTF-8 bytes). `benchmark` is the plain mean
    of the tasks' accuracies, by default those of the likeliest choice by summed log-likelihood. The untrained values
    come from freshly initialised weights on the first part of the same text.

    Args:
        expected_sha256: of the checkpoint that training wrote; other bytes are refused.
        serve: starts a model's process from a weight file's bytes, or with fresh weights for None; the final norm
            and the head stay in this process.
        heldout_texts: gives the held-out documents in a fixed order; called after the models' processes were
            forked, so that these never hold the text or the answers.
        task_folder: where the question files are kept between evaluations.
        max_length: longest input in tokens, normally the training length.
        clock: seconds, for `Evaluation.seconds`.
        threads: CPU threads of this process. Its tensors are small, unless the head is on the CPU: with all cores of a
            node they would wait for each other, and for the models' processes.

    Raises:
        EvaluationError: other weights than expected; loss not `config.min_margin` below uniform and untrained;
            predictions that depend on later tokens or other rows; absurd numbers; a model's process that fails.
        ConfigError: tasks of lm-eval that lack their data, or that it does not know.
    """
    started = clock()
    if not config.tasks:
        raise EvaluationError("evaluation.tasks is empty; name at least one task, the benchmark is their mean")
    content, sha256 = _read(weights, expected_sha256)
    with serve(content) as trained, serve(None) as fresh, torch_threads(threads):
        del content
        texts = heldout_texts()
        measurement = _Measurement(texts, tokenizer, config, task_folder, max_length, vocab, threads)
        before, after, tasks = measurement.run(trained, fresh)
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
        benchmark=benchmark(tasks),
        tasks=tasks,
        averages=averages(tasks, config),
        seconds=clock() - started,
        harness=f"lm-eval {importlib.metadata.version('lm-eval')}",
    )


@dataclass(frozen=True, slots=True)
class _Likelihood:
    """Rolling likelihood of held-out text."""

    loss: float
    bits_per_byte: float


@dataclass(frozen=True, slots=True)
class _Measurement:
    """How models are measured: everything that does not depend on the model."""

    texts: Sequence[str]
    tokenizer: Tokenizer
    config: EvaluationConfig
    task_folder: Path
    max_length: int
    vocab: int
    threads: int

    def run(self, trained: ServedModel, fresh: ServedModel) -> tuple[_Likelihood, _Likelihood, dict[str, TaskScore]]:
        """The fresh model on the first part of the text; the trained one on all of it and on the tasks."""
        from asiarch_hpc.evaluation.harness import own_tasks, published_tasks, run_tasks  # lm-eval, after the forks

        config, names = self.config, self.config.tasks
        loaded = published_tasks(published(names), config.data)
        text = _measured_text(self.texts, self.tokenizer, config.heldout_tokens)
        part = _measured_text(self.texts, self.tokenizer, min(config.untrained_tokens, config.heldout_tokens))
        own = [name for name in names if name in OWN_TASKS]
        folder = self._build(own, text)
        before = self._likelihood(fresh, part)
        mixed = self._likelihood(ServedModel(fresh.states, trained.logits, trained.rows, trained.pad_multiple), part)
        self._check_causal(trained, text)
        after = self._likelihood(trained, text)
        limits = {
            "a uniform guess": math.log(self.vocab),
            "the untrained model": before.loss,
            "untrained blocks under the trained head": mixed.loss,  # as if the blocks' weights were never loaded
        }
        _check_trained(after.loss, limits, config.min_margin)
        model = self._model(trained, begin_with_eos=config.begin_with_eos)
        measured = run_tasks(model, own_tasks(folder, own))
        measured |= run_tasks(model, loaded, limit=config.limit or None)
        return before, after, task_scores({name: measured[name] for name in names}, config)

    def _likelihood(self, served: ServedModel, text: Sequence[str]) -> _Likelihood:
        from asiarch_hpc.evaluation.harness import own_tasks, run_tasks

        model = self._model(served, begin_with_eos=True)  # whatever tasks want: held-out text as in training
        (measured,) = run_tasks(model, own_tasks(self._build((), text), [ROLLING]))[ROLLING]
        bits = number(ROLLING, measured.values, "bits_per_byte,none")
        if not (bits > 0):
            raise EvaluationError(
                f"held-out bits per byte are {bits}, expected a positive number: the model is not scored"
            )
        nats = bits * math.log(2) * sum(len(document.encode()) for document in text)
        return _Likelihood(nats / model.scored_tokens, bits)

    def _check_causal(self, model: ServedModel, documents: Sequence[str]) -> None:
        """Refuses trained weights whose predictions change when later tokens, or the order of the rows, change.

        The gate tests causality before training; a leak may open in training, from a gate that starts at zero. Later
        tokens are taken from the next row, so that both inputs look like text to the model. Compared is the
        log-probability of the original next token at each place before its row's cut; at the last of them that token
        itself was replaced, so that a look one token ahead shows.
        """
        length, tolerance, ids = self.max_length, self.config.causality_tolerance, list[int]()
        for document in documents:
            if len(ids) >= self.config.batch_size * length:
                break
            ids += [self.tokenizer.eos, *self.tokenizer.encode(document)]
        rows = min(self.config.batch_size, len(ids) // length)
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
        if not (change <= tolerance):
            raise EvaluationError(
                f"the trained model's predictions change by {change:.3g} nats when only later tokens and the order of "
                f"the rows change, expected at most {tolerance:g}: it sees the answers, mixes rows or is random in "
                "evaluation, so it gets no score; the design must be causal and deterministic"
            )

    def _model(self, served: ServedModel, *, begin_with_eos: bool) -> HarnessModel:
        from asiarch_hpc.evaluation.model import HarnessModel

        return HarnessModel(
            served,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            batch_size=self.config.batch_size,
            begin_with_eos=begin_with_eos,
            threads=self.threads,
        )

    def _build(self, names: Sequence[str], rolling: Sequence[str]) -> Path:
        config = self.config
        return build_tasks(
            self.texts,
            names=names,
            questions=config.questions,
            seed=config.seed,
            folder=self.task_folder,
            rolling=rolling,
        )


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
