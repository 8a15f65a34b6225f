"""A design through the gate, beside the run's reference baseline."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asiarch_hpc.config import Config
from asiarch_hpc.errors import DesignError
from asiarch_hpc.gate.check import check, find_device
from asiarch_hpc.gate.checks.subject import Precision
from asiarch_hpc.records import GateReport
from asiarch_hpc.training.backbone import LanguageModel, build_model
from jobs.sizing import count, matched_size
from jobs.workspace import Workspace
from kernels.operands import plain_forms


@dataclass(frozen=True)
class Reference:
    """The reference baseline, which every other design is held against."""

    source: str
    parameters: int


def examine(space: Workspace, source: str, *, reference: str | None, scratch: Path) -> GateReport:
    """The gate's report on a design, beside the reference baseline's (None: it is the reference itself)."""
    if reference is None:
        return examine_beside(space, source, None, scratch)
    report, (_, text) = space.gate_report(reference), space.design(reference)
    return examine_beside(space, source, Reference(text, report.parameters), scratch)


def examine_beside(space: Workspace, source: str, reference: Reference | None, scratch: Path) -> GateReport:
    """The gate's report on a design of the reference's size; at the run's size where there is no reference."""
    scale, config = space.config.scale, space.config.gate
    parameters = count(space, source, scale.dim, scale.depth) if reference is None else reference.parameters

    def size() -> tuple[int, int]:
        if reference is None:
            return scale.dim, scale.depth
        return matched_size(space, source, parameters)

    def build(text: str, dim: int, depth: int, vocab: int) -> LanguageModel:
        return build_model(text, vocab=vocab, scale=scale, dim=dim, depth=depth, seed=space.config.search.seed)

    with plain_forms():  # the checks use many lengths
        return check(
            source,
            config=config,
            build=functools.partial(build, source),
            build_reference=(
                None if reference is None else functools.partial(build, reference.source, scale.dim, scale.depth)
            ),
            vocab=space.corpus.vocab,
            length=scale.length,
            size=size,
            target_parameters=parameters,
            text=_text(space),
            seed=space.config.search.seed,
            writable=scratch,
            reference_size=(scale.dim, scale.depth),
            precision=_training_precision(space.config),
            attention=scale.attention,
        )


def _training_precision(config: Config) -> Precision:
    """The precision that trials are expected to train in, without a look at CUDA, which would spoil it for children;
    a GPU is taken to have bf16."""
    if config.scale.precision != "auto":
        return "bf16" if config.scale.precision == "bf16" else "fp32"
    gpu = config.executor.train.gpus > 0 and config.scale.device == "auto"
    return "bf16" if gpu or find_device(config.scale.device) == "cuda" else "fp32"


def _text(space: Workspace) -> Tensor:
    """[rows, length + 1] tokens of training text for the gate's learning steps: a batch, or a part of a large one."""
    scale, text = space.config.scale, space.corpus.train
    rows = max(1, min(scale.batch_size, space.config.gate.learn_tokens // scale.length))
    needed = rows * (scale.length + 1)
    if text.tokens < needed:
        raise DesignError(f"the corpus has {text.tokens} tokens, fewer than the {needed} of one batch; use more text")
    return torch.tensor(text.read(0, needed).astype("int64")).view(rows, scale.length + 1)
