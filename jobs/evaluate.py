"""The evaluation half of job `train`: hashes the weights, and scores what a confined child computes with them.

This process never loads the candidate.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from asiarch_hpc.errors import EvaluationError, RecordError
from asiarch_hpc.evaluation.evaluate import evaluate
from asiarch_hpc.evaluation.process import serve_states
from asiarch_hpc.evaluation.scoring import ServedModel
from asiarch_hpc.gate.sandbox import choose_rung, confine_process
from asiarch_hpc.records import Evaluation, GateReport
from asiarch_hpc.store.layout import TrialLayout
from asiarch_hpc.training import checkpoint
from asiarch_hpc.training.backbone import LanguageModel, build_model
from asiarch_hpc.training.engine import choose_device
from asiarch_hpc.training.objective import choose_precision
from jobs import compiled
from jobs.devices import uses_gpu
from jobs.entry import Attempt
from jobs.ranks import visible_gpus
from jobs.workspace import Workspace


def evaluate_trial(
    attempt: Attempt,
    space: Workspace,
    trial: TrialLayout,
    source: str,
    gate: GateReport,
    seed: int,
    weights_sha256: str,
    baseline: bool,
) -> Evaluation:
    """Evaluates the weights that a trial's training left.

    Args:
        weights_sha256: of these weights, as the training told it.
        baseline: whether the design is one of ours, whose compiled kernels are kept for others.

    Raises:
        EvaluationError: the weights get no score; the message says why.
    """
    corpus, config = space.corpus, space.config
    identifier = trial.root.parent.parent.name
    kept = f"{identifier}-states" if baseline else None
    return evaluate(
        experiment=identifier,
        trial=trial.root.name,
        attempt=attempt.token,
        weights=trial_weights(trial),
        expected_sha256=weights_sha256,
        serve=functools.partial(_serve, space, source, gate, seed, kept=kept),
        tokenizer=corpus.tokenizer,
        vocab=corpus.vocab,
        heldout_texts=lambda: corpus.heldout_texts,
        config=config.evaluation,
        task_folder=space.corpora / f"{corpus.key}.tasks",
        max_length=config.scale.length,
        clock=time.monotonic,
        threads=config.scale.threads,
    )


def trial_weights(trial: TrialLayout) -> Path:
    """The file in which a training leaves its final weights."""
    return trial.checkpoint.with_name(trial.checkpoint.name + ".weights")


@contextlib.contextmanager
def _serve(
    space: Workspace, source: str, gate: GateReport, seed: int, weights: bytes | None, *, kept: str | None = None
) -> Iterator[ServedModel]:
    """The trained weights, or fresh ones: the blocks in a confined process, the final norm and the head in this one.

    What it compiles is kept for later jobs under the name `kept`, if one is given.
    """
    resources = space.config.executor.train
    scale, vocab, config = space.config.scale, space.corpus.vocab, space.config.evaluation
    gpu, rung = uses_gpu(scale.device, space.config.gate.sandbox), choose_rung(space.config.gate.sandbox)
    gpus = visible_gpus(resources.gpus) if gpu else []
    # Fresh weights are measured on little text; they need no second process.
    devices = config.devices or len(gpus) or 1 if weights is not None else 1
    ends = _ends(space, gate, seed, weights)

    def load(index: int) -> Callable[[Tensor], Tensor]:
        if index < len(gpus):
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[index]
        os.environ.update(compiled.environment(kernels))
        device = choose_device(scale.device)
        precision = choose_precision(gate.only_precision or scale.precision, device)
        model = build_model(source, vocab=vocab, scale=scale, dim=gate.dim, depth=gate.depth, seed=seed)
        if weights is not None:
            model.load_state_dict(checkpoint.load_weights_bytes(weights))
        model.load_state_dict(ends.state_dict(), strict=False)  # a fresh model's embedding is that of its head
        model.eval().to(device)

        def states(ids: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                return model.hidden(ids.to(device))[0]

        if gpu:  # compile now, while the parent imports lm-eval, and not when it waits for the first answer
            with contextlib.suppress(Exception):  # the answers show what fails
                states(_any_ids(min(2, config.batch_size), scale.length, vocab))
        return states

    with tempfile.TemporaryDirectory(prefix="asiarch-serve-") as scratch:
        kernels = Path(scratch) / "kernels"
        if gpu:
            compiled.unpack(space.compiled, kernels)

        def isolate() -> None:
            with open(os.devnull, "w") as silence:  # what a design prints is no part of the job's log
                os.dup2(silence.fileno(), 1)
                os.dup2(silence.fileno(), 2)
            confine_process(
                memory_gb=resources.memory_gb / devices,
                writable=[Path(scratch)],
                rung=rung,
                threads=scale.threads,
                gpu=gpu,
            )

        with contextlib.ExitStack() as processes:
            states = [
                processes.enter_context(
                    serve_states(
                        functools.partial(load, index),
                        dim=gate.dim,
                        vocab=vocab,
                        max_tokens=config.batch_size * scale.length,
                        timeout_s=config.timeout_s,
                        isolate=isolate,
                        threads=scale.threads,
                    )
                )
                for index in range(devices)
            ]
            rows = max(1, int(config.logit_megabytes * 1e6 / (4 * vocab)))
            logits = _logits(ends, vocab, "cuda" if gpu else "cpu")
            yield ServedModel(states, logits, rows, config.gpu_pad_multiple if gpu else 1)
        if gpu and kept:
            compiled.pack(kernels, space.compiled, kept)


def _any_ids(rows: int, length: int, vocab: int) -> Tensor:
    """[rows, length]: tokens that have nothing to do with a text."""
    return (torch.arange(rows * length) % vocab).view(rows, length)


def _ends(space: Workspace, gate: GateReport, seed: int, weights: bytes | None) -> LanguageModel:
    """What of the language model is the backbone's own, in this process: a model without blocks.

    Raises:
        EvaluationError: the weights do not hold it.
    """
    ends = build_model("", vocab=space.corpus.vocab, scale=space.config.scale, dim=gate.dim, depth=0, seed=seed)
    if weights is not None:
        try:
            state = checkpoint.load_weights_bytes(weights)
            ends.load_state_dict({name: state[name] for name in ends.state_dict()})
        except (RecordError, KeyError, RuntimeError) as error:
            raise EvaluationError(
                f"the trained weights do not hold the backbone's embedding and head: {error}"
            ) from error
    return ends.eval().requires_grad_(False)


def _logits(ends: LanguageModel, vocab: int, device: str) -> Callable[[Tensor], Tensor]:
    """The final norm and the head, in fp32; the device is not touched before the first call, after all forks."""

    @functools.cache
    def placed() -> LanguageModel:
        ends.embedding = torch.nn.Embedding(0, 0)  # only the other end is used here
        return ends.to(device)

    def logits(states: Tensor) -> Tensor:
        model = placed()
        answer: Tensor = model.head(model.normed(states.to(device)))[:, :vocab]
        return answer

    return logits
