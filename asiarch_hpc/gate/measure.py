"""What a model costs, counted operation by operation instead of clocked.

The same design gives the same numbers on every machine and under every load, so they may enter a score. Models run
on the meta device where they can, which has shapes but no values and makes the cost of measuring independent of
the model's size; a model that looks at values runs on the CPU.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from asiarch_hpc.config import GateConfig

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
    `time_exponent` is the slope of log modelled time, launches left out, over log length: 1 for linear growth.
    """

    flops_per_token: float
    launches: int = 0
    bytes_per_token: float = 0.0
    modelled_seconds_per_token: float = 0.0
    time_exponent: float = 0.0


def measure(model: nn.Module, vocab: int, length: int, *, config: GateConfig) -> Measurement:
    """Counts the cost of `model(ids)` at `length` tokens, and how it grows over `config.exponent_lengths`.

    A model that cannot take those lengths is measured at a quarter, half and the whole of `length` instead.

    Args:
        model: maps ids [1, length] int64 to a tuple; its weights stay unchanged.
        vocab: ids are drawn below it where the model must run on real values.

    Raises:
        Exception: whatever the model raises at `length`, on the meta device and on the CPU.
    """
    on_meta = _on_meta(model)
    main = _count(model, on_meta, vocab, length, config)
    try:
        lengths: Sequence[int] = config.exponent_lengths
        counts = [_count(model, on_meta, vocab, n, config) for n in lengths]
    except Exception:  # foreign code: any failure means that it does not take these lengths
        lengths = [max(1, length // 4), max(2, length // 2), max(3, length)]
        counts = [_count(model, on_meta, vocab, n, config) for n in lengths]
    return Measurement(
        flops_per_token=main.flops / length,
        launches=main.launches,
        bytes_per_token=main.bytes / length,
        modelled_seconds_per_token=(main.busy_s + main.launches * config.roofline_launch_s) / length,
        time_exponent=_slope([math.log(n) for n in lengths], [math.log(max(c.busy_s, 1e-12)) for c in counts]),
    )


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Sums floating-point operations, bytes and launches of everything that runs under it."""

    def __init__(self, config: GateConfig) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.flops = 0.0
        self.bytes = 0.0
        self.launches = 0
        self.busy_s = 0.0  # roofline time without launches
        self._config = config

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        out = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        if name in _NO_KERNEL or getattr(func, "is_view", False):
            return out
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not outputs:
            return out
        flops = _flops(func, name, args, kwargs, inputs, outputs, out)
        written = sum(_bytes(tensor) for tensor in outputs)
        moved = 2.0 * written if name in _GATHER else sum(_bytes(tensor) for tensor in inputs) + written
        self.flops += flops
        self.bytes += moved
        self.launches += 1
        self.busy_s += max(flops / self._config.roofline_flops, moved / self._config.roofline_bytes)
        return out


def _count(model: nn.Module, on_meta: nn.Module | None, vocab: int, length: int, config: GateConfig) -> _Counter:
    if on_meta is not None:
        counter = _Counter(config)
        ids = torch.zeros(1, length, dtype=torch.int64, device="meta")
        try:
            with torch.no_grad(), torch.device("meta"), counter:
                on_meta(ids)
            return counter
        except Exception:  # foreign code that needs values fails in many ways on a device without them
            pass
    ids = torch.randint(vocab, (1, length), generator=torch.Generator().manual_seed(length))
    training = model.training
    counter = _Counter(config)
    try:
        model.eval()
        with torch.no_grad(), counter:
            model(ids)
    finally:
        model.train(training)
    return counter


def _on_meta(model: nn.Module) -> nn.Module | None:
    try:
        return copy.deepcopy(model).to("meta").eval()
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


def _bytes(tensor: Tensor) -> float:
    """Bytes behind a tensor; one that repeats itself by its strides holds them once."""
    whole = tensor.numel() * tensor.element_size()
    return float(min(whole, tensor.untyped_storage().nbytes()) if 0 in tensor.stride() else whole)


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    above = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / math.fsum((a - mean_x) ** 2 for a in x)
