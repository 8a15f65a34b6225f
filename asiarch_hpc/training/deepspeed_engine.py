"""The same optimiser steps on several devices at once, by DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054).

Each process computes its share of the rows. Weights, gradients, their sum over processes and AdamW are fp32, and passes
run under autocast as in `TorchEngine`, so both engines do the same arithmetic up to the order of sums.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.errors import ConfigError, PeerLostError
from asiarch_hpc.training.backbone import LanguageModel
from asiarch_hpc.training.checkpoint import State
from asiarch_hpc.training.data import Batch
from asiarch_hpc.training.engine import StepResult, choose_device, clip_and_update, log_fewer_rows, make_optimizer
from asiarch_hpc.training.micro_batch import fewer_rows, fitting_rows, free_memory, is_out_of_memory
from asiarch_hpc.training.monitor import TrainingStoppedError
from asiarch_hpc.training.objective import Objective
from asiarch_hpc.training.world import World, is_lost_peer
from asiarch_hpc.training.zero_state import gather_moments, place_moments

_BUFFER_BYTES = 3 * 4  # a parameter's, at most: bucket of gradients, its flat copy, fp32 master weight


class DeepSpeedEngine:
    """One of several processes that step together; each must call the same methods in the same order.

    Parameters that no process used in a step are updated with a gradient of zero; `TorchEngine` leaves them.

    A step that runs out of memory in any process is done again by all with smaller passes, see `TorchEngine`. Passes
    exchange nothing: gradients are summed over the processes once all of them have said that theirs are whole, so
    that none waits for one that failed.

    Args:
        model: on the CPU in fp32, equal in all processes; moved to this process's device in place.
        scale: optimiser settings, `device`, `precision`, `documents_apart` and `zero_stage`. Stage 0 keeps everything
            on each device, 1 shares out the optimiser's state, 2 the summed gradients as well.
        world: the processes, connected.
        seed: of dropout and the like, which also depends on the step and the rank.

    Raises:
        ConfigError: the device or precision asked for does not exist here.
        TrainingStoppedError: `out_of_memory`, the device cannot take one row; `design_error`, complex parameters.
    """

    def __init__(self, model: LanguageModel, scale: ScaleConfig, world: World, *, seed: int) -> None:
        if not all(p.is_floating_point() for p in model.parameters()):
            raise TrainingStoppedError(
                "design_error",
                "the design has complex parameters, which cannot be trained on several devices; keep real and "
                "imaginary parts as real parameters",
            )
        self._torch_device = choose_device(scale.device)
        self.device = torch.cuda.get_device_name() if self._torch_device.type == "cuda" else "cpu"
        self._model = model.to(self._torch_device).train()
        self._scale = scale
        self._world = world
        self._seed = seed
        self._objective = Objective(model, scale, self._torch_device)
        self.precision = self._objective.precision
        self.micro_batch = scale.micro_batch or self._fitting_rows()
        self._objective.compile()
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(model, scale)
        # DeepSpeed takes groups apart; checkpoints have them as `TorchEngine` does.
        self._groups = self._optimizer.state_dict()["param_groups"]
        self._numbers = {id(p): i for i, p in enumerate(p for g in self._optimizer.param_groups for p in g["params"])}
        self._restored: State | None = None
        self._steps = 0
        self._engine: Any = None

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
        if self._engine is None:
            self._start(batch)
        while (own := self._gradients(batch)) is None:
            self._take_fewer_rows(len(batch.inputs))
        nats = self._world.add(own)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._steps += 1
        if self._scale.zero_stage > 0:
            return self._update_parts(nats)
        clip = self._scale.grad_clip
        return clip_and_update(self._optimizer, self._parameters, nats, clip, self._engine.step)

    def _gradients(self, batch: Batch) -> Tensor | None:
        """Sums up the gradient of the step's loss over micro-batches and processes; this process's part of the loss in
        nats per token. None, and no gradients, where memory ran out in some process.

        From stage 1 on DeepSpeed would exchange gradients as they come, and not those of parameters that a process did
        not use. But designs may compute different things for different data, so it waits for all, in a fixed order.
        """
        if self._scale.zero_stage == 0:
            if (nats := self._whole_gradients(batch)) is not None:
                self._engine.set_gradient_accumulation_boundary(True)
                self._engine.allreduce_gradients()
            return nats
        with self._engine.coalesce_grad_reduction():
            try:
                nats = self._whole_gradients(batch)
            except BaseException:
                self._model.zero_grad(set_to_none=True)  # leaves nothing to exchange on the way out
                raise
            for parameter in self._parameters if nats is not None else ():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        return nats

    def _whole_gradients(self, batch: Batch) -> Tensor | None:
        """This process's gradients and part of the loss, once all processes have theirs; None where one ran out of
        memory."""
        torch.manual_seed(_stream(self._seed, self._steps, self._world.rank))
        nats, shortage = None, None
        try:
            nats = self._own_gradients(batch)
        except Exception as error:
            if is_lost_peer(error) or not is_out_of_memory(error):
                raise
            shortage = error
        return None if self._short(shortage, rows=len(batch.inputs)) else nats

    def _own_gradients(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=self._torch_device)
        rows, size = len(batch.inputs), self.micro_batch
        on_device = self._on_device(batch)
        self._engine.set_gradient_accumulation_boundary(False)
        for begin in range(0, rows, size):
            part = [tensor[begin : begin + size] for tensor in on_device]
            share = len(part[0]) / (rows * self._world.size)
            loss, nats = self._engine(*part, tokens=batch.global_tokens, share=share)
            self._engine.backward(loss, scale_wrt_gas=False)
            total += nats
        return total

    def _short(self, error: Exception | None, *, rows: int) -> bool:
        """Whether memory ran out in any process; all must ask. No gradients are left then.

        Args:
            error: by which it ran out in this one.
            rows: of a whole step on this device.

        Raises:
            `error`: it did with one row a pass; PeerLostError where it did in another process.
        """
        (short,) = self._world.any(error is not None)
        if short:
            self._model.zero_grad(set_to_none=True)
            smaller = fewer_rows(self.micro_batch, rows=rows)
            if smaller == 0:
                raise error or PeerLostError("another process of this training ran out of memory with one row a pass")
            log_fewer_rows(self.micro_batch, smaller, error)
        return short

    def _take_fewer_rows(self, rows: int) -> None:
        self.micro_batch = fewer_rows(self.micro_batch, rows=rows)
        self._objective.forget()
        free_memory(self._torch_device)

    def _on_device(self, batch: Batch) -> tuple[Tensor, ...]:
        """Inputs, targets and documents."""
        tensors = (batch.inputs, batch.targets, batch.documents)
        return tuple(tensor.to(self._torch_device, non_blocking=True) for tensor in tensors)

    def _update_parts(self, nats: Tensor) -> StepResult:
        """Stages 1 and 2: DeepSpeed clips by the norm over all processes, and skips a step whose norm is not finite."""
        loss = float(nats)
        if not math.isfinite(loss):
            for gradients in self._engine.optimizer.averaged_gradients.values():
                for gradient in gradients:
                    gradient.fill_(math.nan)
        self._engine.step()
        return StepResult(torch.tensor((loss, float(self._engine.get_global_grad_norm()))))

    def state(self) -> State:
        """As `TorchEngine.state`, whatever the stage and the number of processes; empty on all ranks but 0."""
        if self._restored is not None:
            moments = self._restored["optimizer"]["state"]
        elif self._engine is not None and self._scale.zero_stage > 0:
            moments = gather_moments(self._engine.optimizer, self._numbers, self._world)
        else:
            moments = self._optimizer.state_dict()["state"]
        if self._world.rank > 0:
            return {}
        cuda = self._torch_device.type == "cuda"
        return {
            "model": self._model.state_dict(),
            "optimizer": {"state": moments, "param_groups": self._groups},
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._torch_device) if cuda else None,
        }

    def restore(self, state: State) -> None:
        assert self._engine is None, "a step was made already"
        self._model.load_state_dict(state["model"])
        self._restored = state
        moments = state["optimizer"]["state"].values()
        self._steps = max((int(moment["step"]) for moment in moments), default=0)

    def _start(self, batch: Batch) -> None:
        """Hands model and optimiser to DeepSpeed, once the blocks are known to compile: its hooks exchange gradients,
        and a pass that fails half-way in one process would leave the others waiting."""
        if self._objective.compiled:
            self._prove(batch)
        stage = self._scale.zero_stage
        if self._restored is not None and stage == 0:
            self._optimizer.load_state_dict(self._restored["optimizer"])
        elements = sum(p.numel() for p in self._parameters)
        deepspeed = _load_deepspeed(self._torch_device.type)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how DeepSpeed uses torch: nothing that a user could change
            self._engine, *_ = deepspeed.initialize(
                model=_Pass(self._model, self._objective),
                optimizer=self._optimizer,
                config=_settings(stage, self._scale.grad_clip, elements),
                dist_init_required=False,
            )
        self._world.limit_waits()
        if self._restored is not None and stage > 0:
            place_moments(self._engine.optimizer, self._numbers, self._restored["optimizer"]["state"], self._world)
        self._restored = None

    def _prove(self, batch: Batch) -> None:
        rows = len(batch.inputs)
        failure = self._failure(batch)
        while self._short(failure if failure and is_out_of_memory(failure) else None, rows=rows):
            failure = None  # it holds the memory of its pass
            self._take_fewer_rows(rows)
            failure = self._failure(batch)
        (failed,) = self._world.any(failure is not None)
        if failed:
            self._objective.fall_back(failure or RuntimeError("compilation failed in another process"))

    def _failure(self, batch: Batch) -> Exception | None:
        """What is wrong with a pass as the blocks are."""
        inputs, targets, documents = (tensor[: self.micro_batch] for tensor in self._on_device(batch))
        try:
            loss, _ = self._objective.loss(inputs, targets, tokens=batch.global_tokens, share=1.0, documents=documents)
            loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            if is_lost_peer(error):
                raise
            return error
        finally:
            self._model.zero_grad(set_to_none=True)
        return None

    def _fitting_rows(self) -> int:
        """Rows of a pass that every process can take."""
        rows = fitting_rows(
            self._objective,
            self._model,
            self._scale,
            rows=self._scale.batch_size // self._world.size,
            device=self._torch_device,
            held_bytes=sum(p.numel() for p in self._model.parameters()) * _BUFFER_BYTES,
        )
        (least,) = self._world.least(rows)
        return int(least)


def choose_engine(scale: ScaleConfig, world: World) -> str:
    """`torch` or `deepspeed`; `auto` takes DeepSpeed for several processes.

    Raises:
        ConfigError: the plain engine cannot train with several processes.
    """
    if scale.engine == "auto":
        return "deepspeed" if world.size > 1 else "torch"
    if scale.engine == "torch" and world.size > 1:
        raise ConfigError(f"scale.engine=torch: one process was expected, not {world.size}; use auto or deepspeed")
    return scale.engine


class _Pass(nn.Module):
    """The objective as a module, which is what DeepSpeed takes."""

    def __init__(self, model: LanguageModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(
        self, inputs: Tensor, targets: Tensor, documents: Tensor, *, tokens: int, share: float
    ) -> tuple[Tensor, Tensor]:
        return self._objective.loss(inputs, targets, tokens=tokens, share=share, documents=documents)


def _settings(stage: int, grad_clip: float, elements: int) -> dict[str, Any]:
    """DeepSpeed's configuration; `elements` is the number of parameters, which makes one bucket."""
    bucket = elements + elements % 2
    return {
        "train_micro_batch_size_per_gpu": 1,  # unused, but must be given
        "gradient_accumulation_steps": 1,  # likewise: the engine says where a step ends
        "gradient_allreduce_op": "sum",  # losses are divided by the tokens of all processes already
        "gradient_clipping": grad_clip if stage else 0.0,  # in stage 0 the engine clips
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device before each pass
        "zero_optimization": {
            "stage": stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "parameter_alignment": True,  # compiled blocks count on aligned parameters
        },
    }


def _load_deepspeed(device: str) -> Any:
    """DeepSpeed, which looks at the machine when it is imported."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed's calls
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed

    if device == "cpu":
        # It would compile an operation for shared memory with a C++ compiler; gloo does the same work.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    return deepspeed


def _stream(seed: int, step: int, rank: int) -> int:
    """Seed of what is random in one step of one process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8]) >> 1
