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

from asiarch_hpc.evaluation.evaluate import evaluate
from asiarch_hpc.evaluation.process import Logits, serve_logits
from asiarch_hpc.gate.sandbox import choose_rung, confine_process
from asiarch_hpc.records import Evaluation, GateReport
from asiarch_hpc.store.layout import TrialLayout
from asiarch_hpc.training import checkpoint
from asiarch_hpc.training.backbone import build_model
from asiarch_hpc.training.engine import choose_device
from jobs.devices import uses_gpu
from jobs.entry import Attempt
from jobs.workspace import Workspace


def evaluate_trial(
    attempt: Attempt,
    space: Workspace,
    trial: TrialLayout,
    source: str,
    gate: GateReport,
    seed: int,
    weights_sha256: str,
) -> Evaluation:
    """Evaluates the weights that a trial's training left.

    Args:
        weights_sha256: of these weights, as the training told it.

    Raises:
        EvaluationError: the weights get no score; the message says why.
    """
    corpus, config = space.corpus, space.config
    return evaluate(
        experiment=trial.root.parent.parent.name,
        trial=trial.root.name,
        attempt=attempt.token,
        weights=trial_weights(trial),
        expected_sha256=weights_sha256,
        serve=functools.partial(_serve, space, source, gate, seed),
        tokenizer=corpus.tokenizer,
        vocab=corpus.vocab,
        heldout_texts=lambda: corpus.heldout_texts,
        config=config.evaluation,
        task_folder=space.corpora / f"{corpus.key}.tasks",
        max_length=config.scale.length,
        clock=time.monotonic,
    )


def trial_weights(trial: TrialLayout) -> Path:
    """The file in which a training leaves its final weights."""
    return trial.checkpoint.with_name(trial.checkpoint.name + ".weights")


@contextlib.contextmanager
def _serve(space: Workspace, source: str, gate: GateReport, seed: int, weights: bytes | None) -> Iterator[Logits]:
    """A process that gives the logits of the trained weights, or of the initial ones."""
    scale, vocab, config = space.config.scale, space.corpus.vocab, space.config
    gpu, rung = uses_gpu(scale.device, config.gate.sandbox), choose_rung(config.gate.sandbox)

    def load() -> Callable[[Tensor], Tensor]:
        device = choose_device(scale.device)
        model = build_model(source, vocab=vocab, scale=scale, dim=gate.dim, depth=gate.depth, seed=seed)
        if weights is not None:
            model.load_state_dict(checkpoint.load_weights_bytes(weights))
        model.eval().to(device)

        def logits(ids: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=gate.only_precision == "bf16"):
                answer: Tensor = model(ids.to(device))[0]
                return answer

        return logits

    with tempfile.TemporaryDirectory(prefix="asiarch-serve-") as scratch:

        def isolate() -> None:
            with open(os.devnull, "w") as silence:  # what a design prints is no part of the job's log
                os.dup2(silence.fileno(), 1)
                os.dup2(silence.fileno(), 2)
            confine_process(
                memory_gb=config.executor.train.memory_gb,
                writable=[Path(scratch)],
                rung=rung,
                threads=scale.threads,
                gpu=gpu,
            )

        with serve_logits(
            load,
            vocab=vocab,
            max_tokens=config.evaluation.batch_size * scale.length,
            timeout_s=config.evaluation.timeout_s,
            isolate=isolate,
            threads=scale.threads,
        ) as logits:
            yield logits
