"""A print of what a design computes, equal for designs that are one family of functions written in two ways.

Two programs are the same architecture if some assignment between their parameters makes them one function. Names,
order, layout, fusing and splitting of the parameters say nothing, so weights cannot be set by any of them. They are
set in three steps, and only by what is left the same:

1. Every entry gets a value of one small symmetric table, by its indices modulo a divisor of the head's width. What is
   drawn at random when the design is built is replaced, what is built constant is the centre of the new value. Rows
   of a fused projection, transposed matrices and heads in any of the usual layouts get the same values.
2. The gradients of a few fixed sums of the output say which role each entry has, whatever it is called and wherever
   it lies. Each entry is moved by a smooth function of its gradients; entries with equal ones, such as those of
   experts that are still alike, are told apart by their order.
3. The same once more from there. Now also what had no effect at the symmetric point, such as a router of equal
   experts, has a role.

The print holds outputs of all three steps, and sums over all entries of functions of their gradients: a multiset, so
order is out of the question, and entries without effect add nothing. Everything runs in float64, also what the design
casts to less, so that the order of summation and casts do not show. All this is done twice: from the constants that
parameters are built with, and from 0 and 1 alone, for who writes a bias of 3 and who leaves it to the training.

What it does not see: the spread of random initial values, dropout and all else that eval mode switches off, precision,
auxiliary losses, and the difference between entries that have the same effect.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from asiarch_hpc.config import GateConfig
from asiarch_hpc.designs.contract import build_block
from asiarch_hpc.gate.sandbox import run_isolated

BehaviourPrint = tuple[tuple[float, ...], ...]

_DIM, _FFN = 64, 2.67  # the last is the width of the seed trees' feed-forward
_HEADS = (2, 4)  # few, so that a few numbers for each head are still a short axis; four for what needs them
_SHORT = 16  # axes shorter than this get one value: convolution taps, heads, experts, all gates of heads in one matrix
_PERIOD = 8  # of the table; divides the width of a head and of the seed trees' feed-forward
_LENGTH, _BATCH = 80, 2  # more than one chunk of 64
_LONG = 300  # of one more pass: windows up to this length show
_SEEDS = 8  # constructions that show which initial values are random
_SUMS = 6  # of the output, whose gradients are taken
_FEATURES = 24  # numbers of the print for each part
_MATRIX, _VECTOR = 0.09, 0.25  # spread of table values, with two long axes and with one or none
_MOVE = 0.6  # of that spread, the most that an entry is moved by
_FLOOR = 0.01  # gradients this small beside the usual ones count as none
_GAINS = (1.0, 0.5, 0.2, 0.05)  # of the values, tried until the output is finite and moderate
_LIMIT = 1e6
_TURN = 2.4  # radians between entries that have the same effect
_DIGITS = 9


def behaviour_print(source: str, *, config: GateConfig, scratch: Path) -> BehaviourPrint | None:
    """The print of a design, computed in the sandbox; None where the design does not build, run or end in time.

    Args:
        scratch: an existing folder; a folder for the design is made in it, and removed.

    Raises:
        SandboxError: the configured rung does not work here.
    """
    folder = Path(tempfile.mkdtemp(prefix="behaviour-", dir=scratch))
    try:
        outcome = run_isolated(
            lambda: print_here(source),
            timeout_s=config.timeout_s,
            memory_gb=config.memory_gb,
            writable=[folder],
            rung=config.sandbox,
            processes=config.processes,
            file_gb=config.file_megabytes / 1024,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _checked(outcome.result) if outcome.ok else None


def print_here(source: str) -> list[list[float]] | None:
    """As `behaviour_print`, in this process: for the sandbox's child, and for designs that are trusted."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        for double, heads in itertools.product((True, False), _HEADS):
            with contextlib.suppress(Exception, SystemExit), _working(double):
                found = _readings(_Design(source, heads, torch.float64 if double else torch.float32))
                if found[0]:
                    return found
    return None


def _checked(result: Any) -> BehaviourPrint | None:
    """The child's answer, which a design may have forged, where it is one."""
    if not isinstance(result, list) or len(result) != 2 or not all(isinstance(item, list) for item in result):
        return None
    numbers = all(isinstance(item, int | float) and math.isfinite(item) for item in itertools.chain(*result))
    return tuple(tuple(map(float, reading)) for reading in result) if numbers and len(result[0]) < 1000 else None


class _Doubled(TorchFunctionMode):
    """Turns every lower precision that a design asks for into double."""

    _DTYPES = {  # noqa: RUF012
        **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
        **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
    }
    _CASTS = {  # noqa: RUF012
        **dict.fromkeys((torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16), torch.Tensor.double),
    }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func = self._CASTS.get(func, func)
        return func(*map(self._wide, args), **{name: self._wide(item) for name, item in (kwargs or {}).items()})

    def _wide(self, item: Any) -> Any:
        return self._DTYPES.get(item, item) if isinstance(item, torch.dtype) else item


@contextlib.contextmanager
def _working(double: bool) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    try:
        with _Doubled() if double else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class _Design:
    """What is needed to build a design."""

    source: str
    heads: int
    dtype: torch.dtype

    def build(self, seed: int) -> nn.Module:
        _seed(seed)
        block = build_block(self.source, dim=_DIM, heads=self.heads, layer_idx=0, ffn_multiple=_FFN)
        return block.eval()

    def prepared(self, values: Tensor, fixed: Sequence[Tensor | None]) -> nn.Module:
        """A fresh model, without the state that a pass may leave behind, with these values."""
        model = self.build(0)
        at = 0
        with torch.no_grad():
            for parameter in _trained(model):
                count = parameter.numel() * (2 if parameter.is_complex() else 1)
                flat = values[at : at + count]
                at += count
                whole = torch.view_as_complex(flat.view(-1, 2)) if parameter.is_complex() else flat
                parameter.copy_(whole.view(parameter.shape))
            for tensor, value in zip(_held(model), fixed, strict=True):
                if value is not None:
                    tensor.copy_(value)
        return model


def _readings(design: _Design) -> list[list[float]]:
    """The print with and without the constants that parameters start from; an empty list where there is none."""
    draws = [design.build(seed) for seed in range(_SEEDS)]
    fixed = _fixed(draws, design.dtype)
    found: list[list[float]] = []
    starts: list[Tensor] = []
    for constants in (True, False):
        start, spread, table = _start(draws, design.dtype, constants=constants)
        if starts and torch.equal(start, starts[0]):
            return [found[0], found[0]]
        starts.append(start)
        found.append([])
        for gain in _GAINS:
            parts = _parts(design, start + gain * spread * table, gain * spread, fixed)
            if parts is not None:
                found[-1] = [number for part in parts for number in _normed(part)]
                break
    return found


def _parts(design: _Design, start: Tensor, spread: Tensor, fixed: Sequence[Tensor | None]) -> list[Tensor] | None:
    """The parts of a print; None where outputs are not finite and moderate with this spread."""
    inputs = _noise((_BATCH, _LENGTH, _DIM), 1, design.dtype)
    sums = _noise((_SUMS, _BATCH, _LENGTH, _DIM), 2, design.dtype) / math.sqrt(_BATCH * _LENGTH)
    parts: list[Tensor] = []
    values = start
    for _ in range(2):
        output, gradients = _gradients(design.prepared(values, fixed), inputs, sums)
        if not _moderate(output, gradients):
            return None
        direction, weight = _roles(gradients)
        parts += [_projected(output), _multiset(direction, weight)]
        values = start + spread * _moves(gradients, direction, weight)
    with torch.no_grad():
        for tokens in (inputs, _noise((1, _LONG, _DIM), 3, design.dtype)):
            output = _run(design.prepared(values, fixed), tokens)
            if not _moderate(output):
                return None
            parts.append(_projected(output))
    return parts


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)


def _run(model: nn.Module, inputs: Tensor) -> Tensor:
    """What the block adds to its input; designs that draw random numbers draw the same ones each time."""
    _seed(0)
    output: Tensor = model(inputs)[0]
    return output - inputs


def _trained(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _held(model: nn.Module) -> list[Tensor]:
    """What a training does not change: buffers and frozen parameters."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return [tensor for tensor in (*frozen, *model.buffers()) if tensor.is_floating_point()]


def _flat(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor's real numbers in one row."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1).to(dtype)


def _fixed(draws: Sequence[nn.Module], dtype: torch.dtype) -> list[Tensor | None]:
    """Values for what is drawn at random and then kept, such as random features; None for what is not random."""
    found: list[Tensor | None] = []
    for tensor, *others in zip(*map(_held, draws), strict=True):
        if all(torch.equal(tensor, other) for other in others):
            found.append(None)
        else:
            table, spread = _table(tensor.shape, dtype)
            found.append((table * spread).view(tensor.shape))
    return found


def _start(draws: Sequence[nn.Module], dtype: torch.dtype, *, constants: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of each entry: where its values start, the spread of values around that, and its table value.

    The spread does not depend on the start, so that w around 1 and 1 + w around 0 are the same.

    Args:
        constants: start from what is built constant; else, from the ones among it alone, which norms and scales have.
    """
    starts, spreads, tables = ([torch.zeros(0, dtype=dtype)] for _ in range(3))
    for same in zip(*map(_trained, draws), strict=True):
        drawn = torch.stack([_flat(tensor, dtype) for tensor in same])
        shape = (*same[0].shape, 2) if same[0].is_complex() else same[0].shape
        varies = (drawn != drawn[0]).any(0)
        constant = drawn[0] if constants else (drawn[0] == 1).to(dtype)
        starts.append(torch.where(varies, _centre(drawn[:, varies], shape, dtype), constant))
        table, spread = _table(shape, dtype)
        spreads.append(spread)
        tables.append(table)
    return torch.cat(starts), torch.cat(spreads), torch.cat(tables)


def _centre(drawn: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Where random values start, by their sign and shape alone, since their mean is known only roughly.

    Values of one sign keep it: they may be arguments of a logarithm. Small square matrices mix heads or the like and
    are drawn around the identity or set to it.
    """
    if drawn.numel() and bool((drawn > 0).all()):
        return torch.ones((), dtype=dtype)
    if drawn.numel() and bool((drawn < 0).all()):
        return -torch.ones((), dtype=dtype)
    if len(shape) > 1 and shape[-1] == shape[-2] < _SHORT:
        return torch.eye(shape[-1], dtype=dtype).expand(tuple(shape)).reshape(-1)
    return torch.zeros((), dtype=dtype)


def _table(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Table values for a tensor, and their spread, by indices alone and the same for a transposed tensor.

    Only long axes count. What is left over when a long axis is cut into periods is a short one.
    """
    table = (torch.rand(_PERIOD, _PERIOD, generator=_generator(4), dtype=torch.float64) * 2 - 1) * math.sqrt(3)
    table = torch.triu(table) + torch.triu(table, 1).T
    one, two = torch.zeros(tuple(shape), dtype=torch.int64), torch.zeros(tuple(shape), dtype=torch.int64)
    counted = torch.zeros(tuple(shape), dtype=torch.int64)
    long = [axis for axis, size in enumerate(shape) if size >= _SHORT]
    for axis in long:
        size = shape[axis]
        at = torch.arange(size)
        whole = at < size // _PERIOD * _PERIOD
        index = torch.where(whole, at % _PERIOD, 0).view([-1 if other == axis else 1 for other in range(len(shape))])
        counted += whole.view(index.shape)
        if axis == long[-1]:
            two = two + index
        else:
            one = (one + index) % _PERIOD
    spread = torch.where(counted > 1, _MATRIX, _VECTOR).to(dtype)
    return table.to(dtype)[one.reshape(-1), two.reshape(-1)], spread.reshape(-1)


def _gradients(model: nn.Module, inputs: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and of every entry the gradients of the sums: [entries, sums]."""
    parameters = _trained(model)
    output = _run(model, inputs)
    found = []
    for index, direction in enumerate(sums):
        given = torch.autograd.grad(
            output, parameters, direction, retain_graph=index + 1 < len(sums), allow_unused=True
        )
        whole = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, given, strict=True)]
        found.append(torch.cat([_flat(gradient, inputs.dtype) for gradient in whole]))
    return output.detach(), torch.stack(found, dim=1)


def _moderate(*tensors: Tensor) -> bool:
    return all(bool((tensor.abs() < _LIMIT).all()) for tensor in tensors)


def _roles(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Direction [entries, sums] and weight [entries] of the gradients; the weight is 0 where there is no effect."""
    length = gradients.norm(dim=1)
    usual = (length**4).sum().sqrt() / (length**2).sum().sqrt()  # entries without effect do not lower it
    floor = _FLOOR * usual.clamp(min=1e-12)
    return gradients / (length + floor)[:, None], length / (length + floor)


def _moves(gradients: Tensor, direction: Tensor, weight: Tensor) -> Tensor:
    """How far each entry is moved, in units of its spread, by its role and its place among those of the same role."""
    mixed = _noise((_SUMS,), 5, gradients.dtype) * 2
    turn = _TURN * _places(gradients).to(gradients.dtype)
    return _MOVE * math.sqrt(2) * weight * torch.sin(direction @ mixed + turn)


def _places(gradients: Tensor) -> Tensor:
    """Number of earlier entries with the same gradients."""
    scale = gradients.abs().max().clamp(min=1e-12)
    tolerance = (1e-10 if gradients.dtype == torch.float64 else 1e-5) * scale
    order = torch.argsort(gradients @ _noise((_SUMS,), 6, gradients.dtype))
    ordered = gradients[order]
    new = torch.cat([torch.zeros(1, dtype=torch.bool), (ordered.diff(dim=0).abs() > tolerance).any(1)])
    group = torch.empty_like(order)
    group[order] = new.cumsum(0)
    grouped = torch.argsort(group, stable=True)
    sizes = torch.bincount(group)
    first = (sizes.cumsum(0) - sizes)[group[grouped]]
    places = torch.empty_like(order)
    places[grouped] = torch.arange(len(order)) - first
    return places


def _projected(output: Tensor) -> Tensor:
    flat = output.double().reshape(-1)
    return _noise((_FEATURES, flat.numel()), 7, torch.float64) @ flat / math.sqrt(flat.numel())


def _multiset(direction: Tensor, weight: Tensor) -> Tensor:
    """Sums over all entries of smooth functions of their gradients, which vanish for those without effect."""
    mixed = _noise((_SUMS, _FEATURES), 8, torch.float64) * 2
    phase = _noise((_FEATURES,), 9, torch.float64) * 3
    return (weight.double()[:, None] * torch.sin(direction.double() @ mixed + phase)).sum(0)


def _normed(part: Tensor) -> list[float]:
    """A part at length 1, and the logarithm of its length: differences are relative ones."""
    length = part.norm().clamp(min=1e-12)
    return [round(number, _DIGITS) for number in (*(part / length).tolist(), float(length.log()))]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64).to(dtype)
