"""What a benchmark of an operation is: operands, ways to compute, a check against float64, and the one timer."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tests.kernels.cases import error

Operands = tuple[Tensor, ...]
Way = Callable[..., Any]  # its first result counts, of a tuple; all of them are checked
SETS, ROUNDS = 3, 15  # sets of operands, in turn, and how often all of them are timed
FLA, COMPILED = "flash-linear-attention", "torch.compile"


@dataclass
class Draw:
    """Fresh operands, another one at each call."""

    device: str
    generator: torch.Generator

    @classmethod
    def from_seed(cls, seed: int, device: str) -> Draw:
        return cls(device, torch.Generator(device).manual_seed(seed))

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device).to(dtype)

    def integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.generator, device=self.device)

    def documents(self, batch: int, length: int, count: int) -> Tensor:
        """[batch, length] int32: rows of `count` documents, with ends at random."""
        ends = self.integers(length, batch, count - 1, 1)
        return (torch.arange(length, device=self.device) >= ends).sum(1, dtype=torch.int32)


@dataclass(frozen=True)
class Target:
    """So many times as fast as `of`: the name of another way, or "best" of the rivals."""

    factor: float
    of: str = "best"


@dataclass(frozen=True)
class Case:
    """An operation at a shape.

    `make` draws operands for a number of sequences, `batch` of them for times and `checked` for the check; floating
    ones get gradients unless `gradients` is false. `plain` computes the same in float64. `rivals` are made when they
    are asked for, since they may have to be imported or compiled; `own` are other operations of ours on the same
    operands. `flops` of the forward pass; the backward pass counts twice that. `vector`: not on tensor cores. `sizes`:
    the operation's name in the table of configurations. `timed`: false for cases that are only checked.
    """

    operation: str
    shape: str
    make: Callable[[Draw, int], Operands]
    ours: Way
    plain: Way
    batch: int = 1
    checked: int = 1
    rivals: Mapping[str, Callable[[], Way]] = field(default_factory=dict)
    own: Mapping[str, Way] = field(default_factory=dict)
    flops: float = 0.0
    vector: bool = False
    target: Target = Target(1.0)
    sizes: str | None = None
    timed: bool = True
    gradients: bool = True
    tolerances: tuple[float, float] = (1e-2, 1e-2)  # of results and of gradients

    @property
    def name(self) -> str:
        return f"{self.operation} {self.shape}"

    def operands(self, draw: Draw, batch: int) -> Operands:
        made = self.make(draw, batch)
        return tuple(x.requires_grad_(self.gradients and x.is_floating_point()) for x in made)


@dataclass(frozen=True)
class Times:
    """Milliseconds of the device, of the forward pass and of both (None: there is no backward pass); memory beyond the
    operands at the highest; and the bytes of reading and writing each operand, result and gradient once a pass."""

    forward: float
    both: float | None
    gib: float
    least_bytes: int

    @property
    def whole(self) -> float:
        return self.forward if self.both is None else self.both


def first_of(found: Any) -> Tensor:
    first: Tensor = found[0] if isinstance(found, tuple) else found
    return first


def results(way: Way, operands: Operands, upstream: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Of a way: what it returns, and gradients by the operands that have them, zeros where it does not use one."""
    found = way(*operands)
    returned = list(found) if isinstance(found, tuple) else [found]
    wanted = [x for x in operands if x.requires_grad]
    if not wanted:
        return returned, []
    upstream = torch.ones_like(returned[0]) if upstream is None else upstream.to(returned[0].dtype)
    gradients = torch.autograd.grad(returned[0], wanted, upstream, allow_unused=True)
    return returned, [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, gradients, strict=True)]


def check(case: Case, draw: Draw) -> tuple[float, str | None]:
    """The worst relative error against float64 of the same operands, and what is wrong, or None.

    What a kernel does not write is nan; the second of two runs must give the same.
    """
    operands = case.operands(draw, case.checked)
    exact = tuple(x.detach().double() if x.is_floating_point() else x for x in operands)
    exact = tuple(x.requires_grad_(y.requires_grad) for x, y in zip(exact, operands, strict=True))
    like = first_of(case.ours(*operands))
    upstream = torch.ones_like(like) if like.ndim == 0 else draw.normal(*like.shape)
    with nan_where_nothing_is_written():
        found, again = results(case.ours, operands, upstream), results(case.ours, operands, upstream)
    wanted, worst = results(case.plain, exact, upstream), 0.0
    for kind, mine, twice, right, limit in zip(
        ("result", "gradient"), found, again, wanted, case.tolerances, strict=True
    ):
        for i, (a, b, c) in enumerate(zip(mine, twice, right, strict=True)):
            off, apart = error(a, c), error(b, a)
            worst = max(worst, off)
            if not off < limit:
                return off, f"{kind} {i} is off by {off:.1e}, at most {limit:.0e} allowed"
            if not apart < 1e-6:
                return worst, f"{kind} {i} differs by {apart:.1e} when it is computed again"
    return worst, None


def disagreement(case: Case, way: Way, operands: Operands) -> float:
    """Worst relative difference of a way's results and gradients from ours, in units of what float64 may differ."""
    upstream = torch.randn_like(first_of(case.ours(*operands)))
    mine, theirs = (results(way, operands, upstream) for way in (case.ours, way))
    worst = 0.0
    for a, b in [(theirs[0][0], mine[0][0]), *zip(theirs[1], mine[1], strict=True)]:
        apart = error(a, b) if a.shape == b.shape else float("inf")
        worst = max(worst, apart if apart == apart else float("inf"))
    return worst / max(case.tolerances)


def measure(case: Case, way: Way, draw: Draw) -> Times:
    """Times of a way, the forward pass without gradients."""
    sets = [case.operands(draw, case.batch) for _ in range(SETS)]

    def forward(index: int) -> None:
        with torch.no_grad():
            way(*sets[index])

    def both(index: int) -> None:
        found = first_of(way(*sets[index]))
        torch.autograd.grad(found, [x for x in sets[index] if x.requires_grad], upstream, allow_unused=True)

    first = first_of(way(*sets[0]))
    upstream = torch.randn_like(first) if first.ndim else torch.ones_like(first)
    least = sum(x.nbytes for x in sets[0]) + first.nbytes
    if case.gradients:
        least += sum((1 + x.requires_grad) * x.nbytes for x in sets[0]) + first.nbytes
    del first
    free()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run = both if case.gradients else forward
    run(0)
    torch.cuda.synchronize()
    gib = (torch.cuda.max_memory_allocated() - before) / 2**30
    return Times(milliseconds(forward), milliseconds(both) if case.gradients else None, gib, least)


def milliseconds(run: Callable[[int], object], sets: int = SETS, rounds: int = ROUNDS) -> float:
    """Of the device for one call: median of rounds in which `run` takes each set of operands once.

    The device waits at the start of a round, so that the time the host needs for its launches does not count.
    """
    for index in range(sets):
        run(index)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for index in range(sets):
        run(index)
    host = time.perf_counter() - begun
    cycles = int(min(1.5 * host + 5e-4, 0.1) * 2e9)  # of a clock of at most 2 GHz
    spans = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(cycles)
        begin.record()
        for index in range(sets):
            run(index)
        end.record()
        torch.cuda.synchronize()
        spans.append(begin.elapsed_time(end) / sets)
    return median(spans)


@dataclass(frozen=True)
class Peaks:
    """What the device does at most, measured: bytes a second of a copy, operations a second of matrix products in
    bfloat16 and, without tensor cores, in float32."""

    bytes: float
    tensor: float
    vector: float


def peaks() -> Peaks:
    x, a, b = (torch.randn(n, device="cuda").bfloat16() for n in (2**28, 8192**2, 8192**2))
    y, a, b = torch.empty_like(x), a.view(8192, 8192), b.view(8192, 8192)
    wide = a[:4096, :4096].float()
    copy = milliseconds(lambda _: y.copy_(x), 1)
    tensor, vector = milliseconds(lambda _: a @ b, 1), milliseconds(lambda _: wide @ wide, 1)
    return Peaks(2 * x.nbytes / copy * 1e3, 2 * 8192**3 / tensor * 1e3, 2 * 4096**3 / vector * 1e3)


@contextmanager
def nan_where_nothing_is_written() -> Iterator[None]:
    """PyTorch fills tensors that it would leave uninitialised, while it is to be deterministic."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def first_line(failure: BaseException) -> str:
    """What a refusal says, or what it comes from, short enough for a cell."""
    while failure.__cause__ is not None:
        failure = failure.__cause__
    lines = str(failure).strip().splitlines() or [""]
    return f"{type(failure).__name__} {lines[0]}"[:100].strip().replace("|", "/")
