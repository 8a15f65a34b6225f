"""A few optimiser steps on real text, from fresh weights, must lower its loss; the same on recall is recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from asiarch_hpc.gate.checks.passes import training_loss
from asiarch_hpc.gate.checks.subject import Specimen, Step, attempt, finding, reject


def examine_learning(specimen: Specimen) -> Iterator[Step]:
    """Codes: learn.no_progress, learn.gradient_norm; learn.recall as a property."""
    config = specimen.config
    losses, worst = _train(specimen, specimen.subject.text, specimen.subject.vocab, "optimiser step")
    if not losses:
        return
    if not worst <= config.grad_norm_limit:
        yield reject(
            "learn.gradient_norm",
            f"the gradient's norm reached {worst:.3g}, at most {config.grad_norm_limit:.3g} is allowed",
            "Normalise the inputs of products and of recurrences; keep decays within 0 and 1.",
            measured=worst,
            limit=config.grad_norm_limit,
        )
    drop = 1 - losses[-1] / losses[0]
    if not drop >= config.learn_drop:
        yield reject(
            "learn.no_progress",
            f"{config.learn_steps} steps took the loss from {losses[0]:.3f} to {losses[-1]:.3f} nats",
            "Keep a residual path and normalised activations, so that gradients reach the embedding.",
            measured=drop,
            limit=config.learn_drop,
        )
    yield "learning to recall"
    losses, _ = _train(specimen, recall_rows(specimen), specimen.vocab, "optimiser step on recall")
    if losses:
        yield finding(
            "learn.recall",
            "property",
            f"{config.learn_steps} steps on key-value recall took the loss from {losses[0]:.3f} to "
            f"{losses[-1]:.3f} nats",
            "",
            measured=1 - losses[-1] / losses[0],
        )


def recall_rows(specimen: Specimen) -> Tensor:
    """[rows, length + 1] ids: pairs of key and value, then the same pairs in another order, so that each value of
    the second half is determined by the first half (multi-query associative recall, arXiv 2312.04927)."""
    rows, length = specimen.subject.text.shape
    half, generator = length // 4, specimen.generator(1)
    keys = specimen.vocab // 2
    lines = []
    for _ in range(rows):
        key = torch.randperm(keys, generator=generator)[:half] if half <= keys else torch.arange(half) % keys
        value = keys + torch.randint(specimen.vocab - keys, (len(key),), generator=generator)
        order = torch.randperm(len(key), generator=generator)
        pairs = torch.cat([torch.stack([key, value], 1), torch.stack([key[order], value[order]], 1)])
        line = pairs.flatten()
        lines.append(torch.cat([line, line[: length - len(line)]]))
    return torch.stack(lines)


def _train(specimen: Specimen, rows: Tensor, vocab: int, name: str) -> tuple[list[float], float]:
    """Losses before each step and after the last, and the largest gradient norm; nothing after a failure, which is
    recorded."""
    config, failures = specimen.config, specimen.failures
    model, failure = attempt(lambda: specimen.build(vocab))
    if model is None:
        failures.add("construct.failed", "second construction", failure)
        return [], 0.0
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=config.learn_rate, weight_decay=0.0)
    losses: list[float] = []
    worst = 0.0
    for step in range(config.learn_steps + 1):
        case = f"{name} {step}"
        loss = training_loss(specimen, model, rows, case)
        if loss is None:
            return [], 0.0
        losses.append(float(loss.detach()))
        if step == config.learn_steps:
            break
        optimiser.zero_grad(set_to_none=True)
        _, failure = attempt(loss.backward)
        if failure:
            failures.add("backward.failed", case, failure)
            return [], 0.0
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip))
        if not math.isfinite(norm):
            failures.add("backward.nonfinite", case, "the gradient's norm is not finite")
            return [], 0.0
        worst = max(worst, norm)
        optimiser.step()
    return losses, worst
