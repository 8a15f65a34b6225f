"""Carries out optimiser steps: forward, backward, clipping, AdamW, on one device.

`Engine` is the seam: the loop knows nothing else about devices, precision or parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.training.backbone import LanguageModel
from asiarch_hpc.training.checkpoint import State
from asiarch_hpc.training.data import IGNORED, Batch


@dataclass(frozen=True)
class StepResult:
    """Cross-entropy in nats per real token, without auxiliary losses, and the gradient norm before clipping."""

    loss: float
    gradient_norm: float


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

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """One optimiser step. Weights stay as they are when loss or gradient are not finite."""
        ...

    def state(self) -> State:
        """Everything that the next step depends on: weights, optimiser, random state."""
        ...

    def restore(self, state: State) -> None:
        """Inverse of `state`."""
        ...


class TorchEngine:
    """One process, one device.

    Args:
        model: on the CPU in fp32; moved to the device in place.
        scale: optimiser settings, `device` and `precision`.

    Raises:
        ConfigError: the device or precision asked for does not exist here.
    """

    def __init__(self, model: LanguageModel, scale: ScaleConfig) -> None:
        self._torch_device = choose_device(scale.device)
        self.device = torch.cuda.get_device_name() if self._torch_device.type == "cuda" else "cpu"
        self.precision = choose_precision(scale.precision, self._torch_device)
        self._model = model.to(self._torch_device).train()
        self._grad_clip = scale.grad_clip
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        first, second = scale.betas
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self._parameters if p.ndim >= 2], "weight_decay": scale.weight_decay},
                {"params": [p for p in self._parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=scale.learning_rate,
            betas=(first, second),
            fused=all(p.is_floating_point() for p in self._parameters),  # complex ones have no fused form
        )

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        inputs, targets = batch.inputs.to(self._torch_device), batch.targets.to(self._torch_device)
        with self._autocast():
            logits, auxiliary = self._model(inputs)
        loss = token_loss(logits, targets)
        self._optimizer.zero_grad(set_to_none=True)
        (loss if auxiliary is None else loss + auxiliary).backward()
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._grad_clip))
        result = StepResult(loss=float(loss.detach()), gradient_norm=norm)
        if math.isfinite(result.loss) and math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
        return result

    def state(self) -> State:
        cuda = self._torch_device.type == "cuda"
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._torch_device) if cuda else None,
        }

    def restore(self, state: State) -> None:
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self._torch_device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self._torch_device)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._torch_device.type, dtype=torch.bfloat16)


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the real predictions, in fp32.

    Args:
        logits: [batch, length, vocab].
        targets: [batch, length] int64, `IGNORED` where nothing is predicted.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


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


def choose_precision(name: str, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto` takes bf16 on GPUs that have it.

    Raises:
        ConfigError: unknown, or the GPU has no bf16.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"scale.precision={name!r}: auto, fp32 or bf16 was expected")
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and device.type == "cuda" and not native:
        raise ConfigError("scale.precision=bf16: this GPU has no bfloat16; use precision=auto or fp32")
    return "bf16" if name == "bf16" or (name == "auto" and native) else "fp32"
