"""What a training minimises: forward and loss of some rows on one device, in its precision, compiled where it helps."""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module

import torch
from torch import Tensor

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.training.backbone import LanguageModel
from asiarch_hpc.training.data import IGNORED
from kernels.linear_cross_entropy import linear_cross_entropy

_log = logging.getLogger(__name__)
_REASON_LENGTH = 300  # characters of a record's line; the log has more


class Objective:
    """The loss of micro-batches; every engine accumulates the same arithmetic with it. Not compiled before `compile`.

    Args:
        model: on `device` already, in fp32.
        scale: `precision`, `compile` and `documents_apart`.
        device: where the model is.

    Attributes:
        precision: `fp32` or `bf16`.
        compiled: whether the blocks are compiled.
        not_compiled_because: why they are not although they should be; empty otherwise.
        gives_documents: whether the design is told which documents tokens are of.

    Raises:
        ConfigError: unknown or impossible precision, unknown `compile`.
    """

    def __init__(self, model: LanguageModel, scale: ScaleConfig, device: torch.device) -> None:
        self.precision = choose_precision(scale.precision, device)
        self._model = model
        self._device = device
        self._compile = compiles(scale.compile, device)
        self.compiled = False
        self.not_compiled_because = ""
        self.gives_documents = scale.documents_apart and model.asks_for_documents

    def compile(self) -> None:
        """Lets the next passes compile the blocks, where the scale says so; to be called before the first step."""
        if self._compile:
            # Block by block: all blocks share one compilation, however deep the model is.
            for block in self._model.blocks:
                block.compile(dynamic=False)
            self.compiled = True

    def loss(
        self, inputs: Tensor, targets: Tensor, *, tokens: int, share: float, documents: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """This micro-batch's part of the step's loss.

        Args:
            inputs: [rows, length] int64.
            targets: [rows, length] int64, `IGNORED` where nothing is predicted.
            tokens: real predictions of the whole step, over all micro-batches.
            share: rows of this micro-batch over rows of the step; weighs the auxiliary losses.
            documents: [rows, length] int32, see `LanguageModel.hidden`; kept from the design where the scale says so.

        Returns:
            Scalars in fp32: cross-entropy in nats over `tokens`, plus auxiliary losses, to go backward from; and the
            former alone, without gradient. Both add up over the micro-batches of a step.
        """
        with self._autocast():
            hidden, auxiliary = self._model.hidden(inputs, documents if self.gives_documents else None)
            sum_of_nats = linear_cross_entropy(
                self._model.normed(hidden).flatten(0, 1),
                self._model.head.weight,
                targets.flatten(),
                ignore_index=IGNORED,
                vocab=self._model.vocab,
            )
        nats = sum_of_nats / tokens
        total = nats if auxiliary is None else nats + auxiliary.float() * share
        return total, nats.detach()

    def forget(self) -> None:
        """Lets the next pass compile anew, for another number of rows.

        What was compiled before would stay in memory, and count towards the number of compilations of one function
        beyond which torch runs it as it is.
        """
        if self.compiled:
            torch._dynamo.reset()

    def fall_back(self, error: BaseException) -> None:
        """Gives up compilation after `error`."""
        self.compiled = False
        self.not_compiled_because = _reason(error)
        _log.warning("the design is not compiled: %s: %s", type(error).__name__, str(error)[:500])
        torch._dynamo.reset()
        for block in self._model.blocks:
            block._compiled_call_impl = None

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)


def _reason(error: BaseException) -> str:
    """An error's first line, with the next one where that only announces it, as torch's wrappers do."""
    lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return said[:_REASON_LENGTH]


def compiles(name: str, device: torch.device) -> bool:
    """Whether blocks are to be compiled; `auto` compiles on GPUs.

    Raises:
        ConfigError: unknown.
    """
    if name not in ("auto", "on", "off"):
        raise ConfigError(f"scale.compile={name!r}: auto, on or off was expected")
    return name == "on" or (name == "auto" and device.type == "cuda")


def load_compiler_aside() -> threading.Thread:
    """Begins to load torch's compiler, some four seconds' work, in a thread: drawing weights leaves Python idle."""

    def load() -> None:
        with suppress(Exception):  # whoever compiles will meet it
            import_module("torch._inductor.compile_fx")

    thread = threading.Thread(target=load, name="load-compiler", daemon=True)
    thread.start()
    return thread


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
