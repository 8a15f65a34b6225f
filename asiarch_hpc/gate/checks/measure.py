"""What a model costs, counted operation by operation instead of clocked.

The same design gives the same numbers on every machine and under every load, so they may enter a score or decide
what a run admits. Models run on the meta device where they can, which has shapes but no values: counting then takes
the same time at every size and length. A model that looks at values runs on its own device.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from asiarch_hpc.config import GateConfig
from asiarch_hpc.gate.checks.shapes import Recipe, Work, key_of, recipe_of

_NO_KERNEL = frozenset({
    "detach", "alias", "lift_fresh", "lift_fresh_copy", "_unsafe_view", "_reshape_alias", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense", "set_", "resize_",
    "scalar_tensor", "is_same_size",
})  # fmt: skip
_GATHER = frozenset({
    "embedding", "index", "index_select", "gather", "take", "_unsafe_index",
})  # fmt: skip
_MOVEMENT = frozenset({
    "clone", "copy_", "copy", "_to_copy", "cat", "stack", "constant_pad_nd", "slice_scatter", "select_scatter",
    "diagonal_scatter", "as_strided_copy", "flip", "roll", "fill", "fill_", "zero_", "ones", "zeros", "full",
    "ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full", "arange", "linspace", "eye",
    "tril", "triu", "masked_fill", "masked_fill_", "where", "index_put", "index_put_", "scatter", "scatter_",
    "index_copy", "index_copy_", "repeat", "rand", "randn", "rand_like", "randn_like", "uniform_", "normal_",
    "bernoulli", "bernoulli_", "native_dropout", "sort", "topk", "argsort", "nonzero", "unique_dim", "_unique2",
    "split_with_sizes_copy", "unfold_copy",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Counted cost of one forward pass over one row of `length` tokens.

    `flops_per_token` counts a multiplication with addition as two, and one for each element of other arithmetic.
    `launches` counts tensor operations that move or compute data. `modelled_seconds_per_token` is the roofline
    time: for each operation the longer of its arithmetic and its memory traffic, plus a launch.
    """

    flops_per_token: float
    launches: int
    modelled_seconds_per_token: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Counted cost of some operations; `busy_s` is their roofline time without launches."""

    flops: float
    launches: int
    busy_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """Counted cost of one training step without the optimiser: `forward` alone, `whole` with loss and backward.

    `peak_bytes` is the most that was allocated at once: activations kept for the backward pass, gradients, and what
    operations leave; parameters and what operations use inside are left out.
    """

    forward: Cost
    whole: Cost
    peak_bytes: float

    def seconds(self, config: GateConfig) -> float:
        """Modelled seconds of the whole step, launches included."""
        return self.whole.busy_s + self.whole.launches * config.roofline_launch_s


class BackwardError(Exception):
    """What a model raised in its backward pass; `__cause__` is the error."""


class Meter:
    """Counts what training steps of one model cost.

    Args:
        model: maps ids [batch, length] int64 to (logits, auxiliary loss or None). Its weights and mode stay as they
            are; running buffers may move.
        vocab: ids are drawn below it.
        arithmetic: context that the model runs in on its own device; where it is given, the meta device, which
            knows no autocast, is left out.
    """

    def __init__(
        self,
        model: nn.Module,
        vocab: int,
        config: GateConfig,
        arithmetic: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> None:
        self._model, self._vocab, self._config = model, vocab, config
        self._arithmetic = arithmetic or contextlib.nullcontext
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._on_meta = _on_meta(model) if arithmetic is None else None
        self._worked_on_meta = False
        self._recipes: dict[Hashable, Recipe] = {}

    @property
    def values_needed(self) -> bool:
        """Whether counting runs the model for real, which takes time and memory; known after the first `step`."""
        return self._on_meta is None

    def step(self, batch: int, length: int) -> StepCost:
        """Cost of one training step on [batch, length] tokens.

        Raises:
            BackwardError: the backward pass fails, on the meta device and on the model's own.
            Exception: whatever the model raises in its forward pass, likewise.
        """
        if self._on_meta is not None:
            try:
                ids = torch.zeros(batch, length, dtype=torch.int64, device="meta")
                with torch.device("meta"), _FusedAttention():
                    found = _count(self._on_meta, ids, self._config, self._recipes)
                self._worked_on_meta = True
                return found
            except Exception:  # foreign code that needs values fails in many ways on a device without them
                if self._worked_on_meta:
                    raise  # it is the length that it refuses
                self._on_meta = None
        ids = torch.randint(self._vocab, (batch, length), generator=torch.Generator().manual_seed(length))
        ids = ids.to(self._device)
        training = self._model.training
        try:
            with torch.random.fork_rng(devices=[]), self._arithmetic():
                torch.manual_seed(length)
                return _count(self._model, ids, self._config, self._recipes)
        finally:
            self._model.train(training)


def measure(model: nn.Module, vocab: int, length: int, *, config: GateConfig) -> Measurement:
    """Counts the cost of `model(ids)` on one row of `length` tokens. See `Meter` for the arguments and errors."""
    return forward_cost(Meter(model, vocab, config).step(1, length), length, config)


def forward_cost(step: StepCost, length: int, config: GateConfig) -> Measurement:
    """The forward pass of a step over one row of `length` tokens."""
    cost = step.forward
    return Measurement(
        flops_per_token=cost.flops / length,
        launches=cost.launches,
        modelled_seconds_per_token=(cost.busy_s + cost.launches * config.roofline_launch_s) / length,
    )


def _count(model: nn.Module, ids: Tensor, config: GateConfig, recipes: dict[Hashable, Recipe]) -> StepCost:
    """`recipes`: of results on the meta device, by their key; looked up and added to."""
    model.train()
    counter = _Counter(config, [*model.parameters(), *model.buffers(), ids], recipes)
    with torch.enable_grad(), _no_garbage_collection(), counter:
        logits, auxiliary = model(ids)[:2]
        forward = counter.cost()
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())
        loss = loss if auxiliary is None else loss + auxiliary
        try:
            loss.backward()
        except Exception as error:
            raise BackwardError from error
        finally:
            model.zero_grad(set_to_none=True)
    return StepCost(forward=forward, whole=counter.cost(), peak_bytes=counter.peak)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Memory that only a collection would free counts as held, instead of being freed at some moment or other."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Sums arithmetic, traffic and launches of everything that runs under it, and follows what is allocated."""

    def __init__(self, config: GateConfig, known: list[Tensor], recipes: dict[Hashable, Recipe]) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._recipes = recipes
        self.flops = 0.0
        self.launches = 0
        self.busy_s = 0.0  # roofline time without launches
        self.live = 0.0
        self.peak = 0.0
        self._config = config
        self._known = [tensor.untyped_storage() for tensor in known]  # held, so that nothing new takes their address
        self._storages = {storage._cdata for storage in self._known}

    def cost(self) -> Cost:
        return Cost(flops=self.flops, launches=self.launches, busy_s=self.busy_s)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "is_view", False):
            return func(*args, **kwargs)
        key = key_of(func, args, kwargs)
        recipe = None if key is None else self._recipes.get(key)
        if recipe is not None:
            out, outputs = recipe.make()
            work = recipe.work
        else:
            out = func(*args, **kwargs)
            inputs, outputs = _tensors((args, kwargs)), _tensors(out)
            work = self._work(func, args, kwargs, inputs, outputs, out)
            if key is not None and (recipe := recipe_of(out, inputs, work)) is not None:
                self._recipes[key] = recipe
        for tensor in outputs:
            self._follow(tensor)
        if work is not None:
            self.flops += work[0]
            self.launches += 1
            self.busy_s += work[1]
        return out

    def _work(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[Tensor],
        outputs: list[Tensor],
        out: Any,
    ) -> Work:
        name = func._overloadpacket.__name__
        if name in _NO_KERNEL or not outputs:
            return None
        flops = _flops(func, name, args, kwargs, inputs, outputs, out)
        written = sum(_bytes(tensor) for tensor in outputs)
        moved = 2.0 * written if name in _GATHER else sum(_bytes(tensor) for tensor in inputs) + written
        return flops, max(flops / self._config.roofline_flops, moved / self._config.roofline_bytes)

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, float(storage.nbytes())
        if key not in self._storages:
            self._storages.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: float) -> None:
        self._storages.discard(key)
        self.live -= size


class _FusedAttention(TorchFunctionMode):
    """Counts attention on the meta device as the one operation that it is on real devices."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and not kwargs.get("enable_gqa") and args[:3] and args[0].ndim == 4:
            names = ("attn_mask", "dropout_p", "is_causal", "scale")
            given = dict(zip(names, args[3:], strict=False)) | kwargs
            given.pop("enable_gqa", None)
            if len(args) >= 3 and not given.get("dropout_p"):
                return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3], **given)[0]
        return func(*args, **kwargs)


def _on_meta(model: nn.Module) -> nn.Module | None:
    try:
        return copy.deepcopy(model).to("meta")
    except Exception:  # some modules cannot be copied, or hold what has no meta form
        return None


def _flops(
    func: Any,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inputs: list[Tensor],
    outputs: list[Tensor],
    out: Any,
) -> float:
    formula = flop_registry.get(func._overloadpacket)
    if formula is not None:
        return float(formula(*args, **kwargs, out_val=out))
    if name in _MOVEMENT or name in _GATHER:
        return 0.0
    largest = float(max(tensor.numel() for tensor in inputs + outputs))
    if name.startswith("_fft_"):
        length = int(max(tensor.shape[dim] for tensor in inputs + outputs for dim in args[1]))
        return 5.0 * largest * math.log2(max(2, length)) * (1.0 if name == "_fft_c2c" else 0.5)
    if name.startswith("_scaled_dot_product"):
        query, key, value = args[:3]
        pairs = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
        return 2.0 * float(pairs * (query.shape[3] + value.shape[3]))
    if name in ("linalg_solve_triangular", "triangular_solve"):
        return float(outputs[0].numel() * outputs[0].shape[-2 if kwargs.get("left", True) else -1])
    if name in ("linalg_inv_ex", "linalg_solve_ex", "_linalg_solve_ex", "linalg_lu_factor_ex", "linalg_cholesky_ex"):
        return 2.0 * inputs[0].numel() * inputs[0].shape[-1]
    return largest


def _tensors(value: object) -> list[Tensor]:
    """Tensors in what an operation takes or gives: nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


def _bytes(tensor: Tensor) -> float:
    """Bytes behind a tensor; one that repeats itself by its strides holds them once."""
    whole = tensor.numel() * tensor.element_size()
    return float(min(whole, tensor.untyped_storage().nbytes()) if 0 in tensor.stride() else whole)
