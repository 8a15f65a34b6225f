"""Finds how many rows of a step one device takes at once, so that a step is as few passes as its memory allows.

Genesys (arXiv 2506.20249, B.1.4) doubles the accumulation steps until a trial training no longer runs out of memory.
Here two small passes are measured, the size follows from a line through them, and one pass of that size confirms it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.training.backbone import LanguageModel
from asiarch_hpc.training.monitor import TrainingStoppedError
from asiarch_hpc.training.objective import Objective

_MOMENT_BYTES = 2 * 4  # AdamW's two moments of one parameter, in fp32
_DOCUMENTS = 8  # in each row of a pass that is measured


def find_micro_batch(measure: Callable[[int], float], *, rows: int, budget_bytes: float, margin: float) -> int:
    """The largest divisor of `rows` whose pass fits the budget.

    Passes of one and two rows give what a pass takes in any case and what each row adds. The size that follows from
    them is confirmed by a pass; while one does not fit, at most half as many rows are tried.

    Args:
        measure: rows -> peak bytes of one pass of that many rows; infinity where memory ran out.
        rows: of a whole step on this device.
        budget_bytes: what the peak may reach.
        margin: share by which a row may take more than the two small passes say.

    Raises:
        TrainingStoppedError: `out_of_memory`, not even one row fits.
    """
    assert rows >= 1, rows
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    one = measure(1)
    if not one <= budget_bytes:
        needed = f"takes {one / 2**20:.0f} MiB" if math.isfinite(one) else "runs out of memory"
        raise TrainingStoppedError(
            "out_of_memory",
            f"a pass of one row {needed}, at most {budget_bytes / 2**20:.0f} MiB are there for it; let the design keep "
            "less for the backward pass: states of chunks instead of tokens, or recomputation",
        )
    if rows == 1:
        return 1
    two = measure(2)
    if not two <= budget_bytes:
        return 1
    row = max(two - one, 0.0) * (1.0 + margin)
    room = budget_bytes - (one - (two - one))
    fitting = math.inf if row == 0.0 else room / row
    size = max((size for size in sizes if size <= fitting), default=1)
    while size > 2 and not measure(size) <= budget_bytes:
        size = fewer_rows(size, rows=rows)
    return size


def fewer_rows(size: int, *, rows: int) -> int:
    """The largest divisor of `rows`, those of a whole step, that is at most half of `size`; 0 where one row is left."""
    return max((smaller for smaller in range(1, min(size, rows) // 2 + 1) if rows % smaller == 0), default=0)


def fit_micro_batch(
    run_pass: Callable[[int], None],
    model: nn.Module,
    *,
    rows: int,
    device: torch.device,
    share: float,
    margin: float,
    held_bytes: int = 0,
) -> int:
    """Rows that `device` takes at once in a training of `model`; `rows` on a CPU, where nothing is measured.

    To be called before the optimiser's first step. Buffers and random states are left as they were, gradients as None.
    Passes are best uncompiled: compiled ones take no more, and each size would be compiled.

    Args:
        run_pass: rows -> forward and backward pass of that many full rows, as `_trial_pass` makes it; adds to the
            gradients.
        model: on `device`.
        rows: of a whole step on this device.
        share: of the device's memory that is free, or this process's already, that the training may take.
        margin: see `find_micro_batch`.
        held_bytes: what the engine will hold beside gradients and moments.

    Raises:
        TrainingStoppedError: `out_of_memory`, not even one row fits.
    """
    if device.type != "cuda" or rows == 1:
        return rows
    parameters = [p for p in model.parameters() if p.requires_grad]
    moments = sum(p.numel() for p in parameters) * _MOMENT_BYTES
    with _unchanged(model, parameters, device):
        # A second pass of a step begins with the gradients of the first.
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        measure = _peak_bytes(run_pass, device)
        free_memory(device)
        free, _ = torch.cuda.mem_get_info(device)
        budget = (free + torch.cuda.memory_reserved(device)) * share - moments - held_bytes
        return find_micro_batch(measure, rows=rows, budget_bytes=budget, margin=margin)


def fitting_rows(
    objective: Objective, model: LanguageModel, scale: ScaleConfig, *, rows: int, device: torch.device,
    held_bytes: int = 0,
) -> int:  # fmt: skip
    """`fit_micro_batch` for a training at a scale, before its objective is compiled."""
    return fit_micro_batch(
        _trial_pass(objective, length=scale.length, vocab=model.vocab, device=device),
        model,
        rows=rows,
        device=device,
        share=scale.memory_share,
        margin=scale.memory_margin,
        held_bytes=held_bytes,
    )


def _trial_pass(objective: Objective, *, length: int, vocab: int, device: torch.device) -> Callable[[int], None]:
    """What `fit_micro_batch` measures: forward and backward pass of full rows of several documents, of all token ids in
    turn."""
    number = (torch.arange(length, device=device) * _DOCUMENTS // length).int()

    def run_pass(rows: int) -> None:
        ids = (torch.arange(rows * length, device=device) % vocab).view(rows, length)
        documents = number.expand(rows, length).contiguous()
        loss, _ = objective.loss(ids, ids, tokens=rows * length, share=1.0, documents=documents)
        loss.backward()  # type: ignore[no-untyped-call]

    return run_pass


def _peak_bytes(run_pass: Callable[[int], None], device: torch.device) -> Callable[[int], float]:
    """Measures passes: the most bytes that tensors held at once, infinity where memory ran out."""

    def measure(rows: int) -> float:
        free_memory(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            run_pass(rows)
            torch.cuda.synchronize(device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return math.inf
        return float(torch.cuda.max_memory_allocated(device))

    return measure


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, a device's or the host's; libraries below torch say so in words only."""
    words = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def free_memory(device: torch.device) -> None:
    """Gives back what a failed pass held; no variable may hold its error."""
    gc.collect()  # a failed pass hangs on its traceback
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


@contextmanager
def _unchanged(model: nn.Module, parameters: list[nn.Parameter], device: torch.device) -> Iterator[None]:
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    assert all(parameter.grad is None for parameter in parameters), "a step is under way"
    with torch.random.fork_rng(devices=[device.index or 0]):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for parameter in parameters:
                parameter.grad = None
            free_memory(device)
