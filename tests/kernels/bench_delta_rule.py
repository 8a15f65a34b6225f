"""Times the delta rule's Triton kernels, beside flash-linear-attention's where that is installed.

    python -m tests.kernels.bench_delta_rule [--no-fla] [WORDS OF CASES TO RUN ...]

Milliseconds of the device, median of 30 runs after 3, over three sets of operands in turn; the host's launches are
hidden behind a wait on the device. Results and gradients of a smaller batch are compared with the chunked form in
float64 first; a case that disagrees is not timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from kernels.delta_rule import chunked, delta_rule
from tests.kernels.cases import error

TOLERANCE = 1e-2
SETS, RUNS = 3, 30


class Measured(Protocol):
    """A case: makes its operands on the GPU."""

    def operands(self, *, batch: int | None = None) -> list[Tensor]: ...


@dataclass(frozen=True)
class Size:
    batch: int
    length: int
    heads: int
    width: int
    gated: bool = False

    def __str__(self) -> str:
        gate = " gated" if self.gated else ""
        return f"{self.batch} x {self.length}, {self.heads} heads of {self.width}{gate}"

    def operands(self, *, batch: int | None = None) -> list[Tensor]:
        shape = (batch or self.batch, self.length, self.heads)
        q, k, v = (torch.randn(*shape, self.width, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        made = [q, k, v, torch.rand(shape, device="cuda").bfloat16()]
        if self.gated:
            made.append(-torch.rand(shape, device="cuda") * 0.1)
        return [x.requires_grad_() for x in made]

    def floor_bytes(self) -> int:
        """Each operand, result and gradient read or written once, forward and backward."""
        wide = self.batch * self.length * self.heads * self.width * 2
        return (4 + 7) * wide


SIZES = [
    Size(32, 2048, 8, 32),
    Size(16, 2048, 8, 64),
    Size(16, 2048, 8, 128),
    Size(8, 2048, 8, 128),
    Size(1, 32768, 8, 128),
    Size(8, 2048, 4, 256),
    *(Size(16, 2048, 8, width, gated=True) for width in (32, 64, 128)),
]


def ours(*operands: Tensor) -> Tensor:
    return delta_rule(*operands, normalise=True)[0]


def theirs(*operands: Tensor) -> Tensor:
    q, k, v, beta, *gate = operands
    options: dict[str, Any] = {"use_qk_l2norm_in_kernel": True}
    if gate:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        return chunk_gated_delta_rule(q, k, v, g=gate[0], beta=beta, **options)[0]
    from fla.ops.delta_rule import chunk_delta_rule

    return chunk_delta_rule(q, k, v, beta, **options)[0]


def plain(*operands: Tensor) -> Tensor:
    return chunked.delta_rule(*operands, normalise=True)[0]


def worst_error(size: Measured, function: Callable[..., Tensor], plain: Callable[..., Tensor]) -> float:
    operands = size.operands(batch=1)
    exact = [x.detach().double().requires_grad_() for x in operands]
    found, wanted = function(*operands), plain(*exact)
    weight = torch.randn_like(found)
    pairs = [(found, wanted)]
    mine = torch.autograd.grad(found, operands, weight)
    pairs += zip(mine, torch.autograd.grad(wanted, exact, weight.double()), strict=True)
    return max(error(a, b) for a, b in pairs)


def milliseconds(run: Callable[[int], object]) -> float:
    for index in range(SETS):
        run(index)
    torch.cuda.synchronize()
    events = []
    for index in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(4_000_000)  # cycles, about 2 ms, in which the host gets ahead
        begin.record()
        run(index % SETS)
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    return median(begin.elapsed_time(end) for begin, end in events)


def measure(size: Measured, function: Callable[..., Tensor], plain: Callable[..., Tensor]) -> str:
    """Times of forward, and of forward and backward, after a comparison with the plain form."""
    try:
        worst = worst_error(size, function, plain)
    except Exception as refusal:
        return f"refused: {(str(refusal) or repr(refusal)).splitlines()[0][:60]}"
    if not worst < TOLERANCE:
        return f"wrong: {worst:.1e}"
    sets = [size.operands() for _ in range(SETS)]
    weight = torch.randn_like(sets[0][2])

    def forward(index: int) -> None:
        with torch.no_grad():
            function(*sets[index])

    def both(index: int) -> None:
        torch.autograd.grad(function(*sets[index]), sets[index], weight)

    return f"{milliseconds(forward):7.3f} {milliseconds(both):7.3f} ms, worst error {worst:.1e}"


def main(words: list[str]) -> None:
    functions = {"ours": ours}
    if "--no-fla" in words:
        words.remove("--no-fla")
    else:
        functions["fla"] = theirs
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for size in SIZES:
        if words and not any(word in str(size) for word in words):
            continue
        for name, function in functions.items():
            print(f"{size!s:34} {name:5} {measure(size, function, plain)}", flush=True)
        print(f"{'':34} bytes once: {size.floor_bytes() / 4.3e12 * 1e3:.3f} ms at 4.3 TB/s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
