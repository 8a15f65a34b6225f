"""Carries out optimiser steps: forward, backward, clipping, AdamW, on one device.

`Engine` is the seam: the loop knows nothing else about devices, precision or parallelism.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.training.backbone import LanguageModel
from asiarch_hpc.training.checkpoint import State
from asiarch_hpc.training.data import Batch
from asiarch_hpc.training.micro_batch import fewer_rows, fitting_rows, free_memory, is_out_of_memory
from asiarch_hpc.training.objective import Objective

_log = logging.getLogger(__name__)


class StepResult:
    """Cross-entropy in nats per real token, without auxiliary losses, and the gradient norm before clipping.

    A GPU may still be at work on them. Reading one waits for this step, and for nothing launched after it.
    """

    def __init__(self, values: Tensor) -> None:
        """`values` [2]: loss and norm, on the device that computes them."""
        self._event: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._values = values

    @property
    def known(self) -> bool:
        """Whether reading does not wait."""
        return self._event is None

    @property
    def loss(self) -> float:
        return self._read()[0]

    @property
    def gradient_norm(self) -> float:
        return self._read()[1]

    def _read(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        values: list[float] = self._values.tolist()
        return values


class Engine(Protocol):
    """What the training loop needs from whatever runs the steps."""

    @property
    def device(self) -> str:
        """Name of the device for the records, such as `cpu` or the GPU's name."""
        ...

    @property
    def precision(self) -> str:
        """`fp32` or `bf16`."""
        ...

    @property
    def micro_batch(self) -> int:
        """Rows that this device computes at once; a step that runs out of memory makes it smaller."""
        ...

    @property
    def compiled(self) -> bool:
        """Whether the blocks run compiled."""
        ...

    @property
    def not_compiled_because(self) -> str:
        """Why they do not although they should, in a line; empty otherwise."""
        ...

    @property
    def gives_documents(self) -> bool:
        """Whether the design is told which documents tokens are of: it asks, and the scale allows it."""
        ...

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One optimiser step, perhaps only launched yet. Weights stay when loss or gradient are not finite."""
        ...

    def state(self) -> State:
        """Everything that the next step depends on: weights, optimiser, random state."""
        ...

    def restore(self, state: State) -> None:
        """Inverse of `state`."""
        ...


class TorchEngine:
    """One process, one device.

    A step that runs out of memory is done again with at most half as many rows a pass, as if it had begun so: with the
    same random numbers, and without the gradients that it left. Buffers that a design changes in its passes have then
    seen some rows twice.

    Args:
        model: on the CPU in fp32; moved to the device in place.
        scale: optimiser settings, `device`, `precision` and `documents_apart`.

    Raises:
        ConfigError: the device or precision asked for does not exist here.
        TrainingStoppedError: `out_of_memory`, the device cannot take one row.
    """

    def __init__(self, model: LanguageModel, scale: ScaleConfig) -> None:
        self._torch_device = choose_device(scale.device)
        self.device = torch.cuda.get_device_name() if self._torch_device.type == "cuda" else "cpu"
        self._model = model.to(self._torch_device).train()
        self._objective = Objective(model, scale, self._torch_device)
        self.precision = self._objective.precision
        self.micro_batch = scale.micro_batch or fitting_rows(
            self._objective, model, scale, rows=scale.batch_size, device=self._torch_device
        )
        self._objective.compile()
        self._proven = not self._objective.compiled
        self._grad_clip = scale.grad_clip
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(model, scale)

    @property
    def compiled(self) -> bool:
        """Whether the blocks run compiled."""
        return self._objective.compiled

    @property
    def not_compiled_because(self) -> str:
        """Why they do not although they should, in a line; empty otherwise."""
        return self._objective.not_compiled_because

    @property
    def gives_documents(self) -> bool:
        """Whether the design is told which documents tokens are of."""
        return self._objective.gives_documents

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        random = self._random_state()
        while (nats := self._tried(batch)) is None:
            self._optimizer.zero_grad(set_to_none=True)
            free_memory(self._torch_device)
            self._set_random_state(random)
        self._proven = True
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        return clip_and_update(self._optimizer, self._parameters, nats, self._grad_clip, self._optimizer.step)

    def _tried(self, batch: Batch) -> Tensor | None:
        """The nats of `_gradients`; None where they are to be computed again, in a way that may work."""
        try:
            return self._gradients(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                if self._proven:
                    raise
                self._objective.fall_back(error)
                self._proven = True
                return None
            if not (smaller := fewer_rows(self.micro_batch, rows=len(batch.inputs))):
                raise
            log_fewer_rows(self.micro_batch, smaller, error)
            self.micro_batch = smaller
            self._objective.forget()
            self._proven = not self._objective.compiled
            return None

    def _gradients(self, batch: Batch) -> Tensor:
        """Accumulates the gradient of the step's loss over its micro-batches; returns its nats per token."""
        self._optimizer.zero_grad(set_to_none=True)
        rows = len(batch.inputs)
        size = self.micro_batch
        inputs = batch.inputs.to(self._torch_device, non_blocking=True)
        targets = batch.targets.to(self._torch_device, non_blocking=True)
        documents = batch.documents.to(self._torch_device, non_blocking=True)
        total = torch.zeros((), device=self._torch_device)
        for begin in range(0, rows, size):
            part = slice(begin, begin + size)
            share = len(batch.inputs[part]) / rows
            loss, nats = self._objective.loss(
                inputs[part], targets[part], tokens=batch.tokens, share=share, documents=documents[part]
            )
            loss.backward()  # type: ignore[no-untyped-call]
            total += nats
        return total

    def state(self) -> State:
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            **self._random_state(),
        }

    def restore(self, state: State) -> None:
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._set_random_state(state)

    def _random_state(self) -> State:
        cuda = self._torch_device.type == "cuda"
        return {
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._torch_device) if cuda else None,
        }

    def _set_random_state(self, state: State) -> None:
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self._torch_device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self._torch_device)


def log_fewer_rows(size: int, smaller: int, error: BaseException | None) -> None:
    """Notes that a step is done again with smaller passes; no `error`: another process had it."""
    what = "memory ran out in another process" if error is None else f"{type(error).__name__}: {str(error)[:300]}"
    _log.warning("%d rows a pass are too many, the step is done again with %d: %s", size, smaller, what)


def make_optimizer(model: LanguageModel, scale: ScaleConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices alone, with the scale's settings; fused where all parameters are real."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    first, second = scale.betas
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": scale.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=scale.learning_rate,
        betas=(first, second),
        fused=all(p.is_floating_point() for p in parameters),  # complex ones have no fused form
    )


def clip_and_update(
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    nats: Tensor,
    grad_clip: float,
    update: Callable[[], object],
) -> StepResult:
    """Clips the gradients by their norm and calls `update`, which leaves the weights where loss or norm is not finite.

    A fused optimiser looks at that on the device, so that nobody waits for it.
    """
    norm = nn.utils.clip_grad_norm_(parameters, grad_clip)
    values = torch.stack((nats, norm.float()))
    if optimizer.defaults["fused"]:
        optimizer.found_inf = (~torch.isfinite(values).all()).float()  # type: ignore[attr-defined]
        update()
    elif bool(torch.isfinite(values).all()):
        update()
    return StepResult(values)


def choose_device(name: str, *, has_cuda: Callable[[], bool] = torch.cuda.is_available) -> torch.device:
    """The device of a `device` setting.

    Args:
        has_cuda: whether there is a GPU; asked only where it matters. torch's own look leaves this process with a
            CUDA that its forked children cannot use.

    Raises:
        ConfigError: unknown, or not on this machine.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"scale.device={name!r}: auto, cpu or cuda was expected")
    found = name != "cpu" and has_cuda()
    if name == "cuda" and not found:
        raise ConfigError("scale.device=cuda: no CUDA device on this machine; use device=auto or ask for a GPU")
    return torch.device("cuda" if found else "cpu")
